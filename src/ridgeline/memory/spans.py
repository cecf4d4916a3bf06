"""How many slots and blocks a sequence holds in a group of layers: closed forms, equal to the allocator's tables."""

from __future__ import annotations

from ridgeline.ops.kv import PACK, Reach

from .storage.storage import BLOCK_TOKENS


def blocks_for(tokens: int) -> int:
    """Blocks that `tokens` tokens fill, the last one perhaps partly."""
    return -(-tokens // BLOCK_TOKENS)


def slot_of(reach: Reach, computed: int) -> int:
    """Where token `computed` goes: its position, until a retention has packed what came before."""
    return int(reach.kept(computed)) if reach.heavy else computed


def kept_blocks(reach: Reach, computed: int) -> int:
    """Blocks that a sequence of `computed` tokens holds in a group (K7)."""
    if reach.is_everything or reach.heavy:
        return blocks_until(reach, slot_of(reach, computed))
    begin, end = dropped_blocks(reach, computed)
    return blocks_for(computed) - max(0, end - begin)


def blocks_until(reach: Reach, slot: int) -> int:
    """Length of a table that has room for slots below `slot`."""
    return blocks_for(int(reach.kept(slot))) if reach.block and not reach.is_recent else blocks_for(slot)


def holds_block(reach: Reach, index: int, computed: int) -> bool:
    """Whether a sequence of `computed` tokens holds block number `index` of a group."""
    begin, end = (0, 0) if reach.is_everything else dropped_blocks(reach, computed)
    return index < blocks_until(reach, computed) and not begin <= index < end


def grain_of(reaches: tuple[Reach, ...]) -> int:
    """Tokens of which a beginning is a multiple that can be shared, or sent on, while more is computed."""
    return max((BLOCK_TOKENS, *(reach.block for reach in reaches)))


def dropped_blocks(reach: Reach, computed: int) -> tuple[int, int]:
    """Blocks [a, b) that hold neither a sink nor one of the last `window` of the first `computed` tokens."""
    behind = computed // reach.block * reach.block if reach.block else max(0, computed - reach.window)
    return blocks_for(reach.sinks), behind // BLOCK_TOKENS


def next_due(reach: Reach, computed: int) -> int:
    """The next count of computed tokens, after this one, at which there may be blocks to give back."""
    if reach.heavy:
        return computed + PACK - computed % PACK
    if reach.block:
        return computed + reach.block - computed % reach.block
    return computed + BLOCK_TOKENS - (computed - reach.window) % BLOCK_TOKENS


def most_blocks(reach: Reach, tokens: int, step_tokens: int) -> int:
    """The most that a sequence of at most `tokens` tokens ever holds in a group, `step_tokens` computed at a time."""
    if reach.is_everything:
        return blocks_until(reach, tokens)
    if reach.is_recent:
        return min(blocks_for(tokens), blocks_for(reach.sinks) + blocks_for(reach.block - 1 + min(step_tokens, tokens)))
    if reach.heavy:
        return min(blocks_for(tokens), blocks_for(reach.budget + PACK))
    inside = blocks_for(reach.sinks) + blocks_for(reach.window + min(step_tokens, tokens)) + 1
    return min(blocks_for(tokens), inside)

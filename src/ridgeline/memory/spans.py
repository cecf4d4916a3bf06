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
        return blocks_for(slot_of(reach, computed))
    begin, end = dropped_blocks(reach, computed)
    return blocks_for(computed) - max(0, end - begin)


def dropped_blocks(reach: Reach, computed: int) -> tuple[int, int]:
    """Blocks [a, b) that hold neither a sink nor one of the last `window` of the first `computed` tokens."""
    return blocks_for(reach.sinks), max(0, computed - reach.window) // BLOCK_TOKENS


def next_due(reach: Reach, computed: int) -> int:
    """The next count of computed tokens, after this one, at which there may be blocks to give back."""
    if reach.heavy:
        return computed + PACK - computed % PACK
    return computed + BLOCK_TOKENS - (computed - reach.window) % BLOCK_TOKENS


def most_blocks(reach: Reach, tokens: int, step_tokens: int) -> int:
    """The most that a sequence of at most `tokens` tokens ever holds in a group, `step_tokens` computed at a time."""
    if reach.is_everything:
        return blocks_for(tokens)
    if reach.heavy:
        return min(blocks_for(tokens), blocks_for(reach.budget + PACK))
    inside = blocks_for(reach.sinks) + blocks_for(reach.window + min(step_tokens, tokens)) + 1
    return min(blocks_for(tokens), inside)

"""Sizing: how many blocks each group of layers gets of the KV memory there is, and what a sequence may hold of them."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.spans import blocks_for, kept_blocks, most_blocks
from ridgeline.memory.storage.storage import BLOCK_TOKENS, make_storage
from ridgeline.ops.kv import KvGroup, Reach


@dataclass(frozen=True, slots=True)
class GroupBill:
    """One group of layers and its pool. most: blocks that one sequence of the whole context ever holds."""

    reach: Reach
    layers: int
    blocks: int
    block_bytes: int
    most: int

    @property
    def nbytes(self) -> int:
        return self.blocks * self.block_bytes

    def __str__(self) -> str:
        return (
            f"{self.layers} layers keep {self.reach}: {self.blocks} blocks of {self.block_bytes / 1024:.1f} KiB, "
            f"at most {self.most} a sequence"
        )


def block_bytes(group: KvGroup) -> int:
    """One block in all layers of the group."""
    storage = make_storage(group.storage.name)
    return KvPool.bytes_for(
        storage, layers=len(group.layers), kv_heads=group.kv_heads, head_dim=group.head_dim, blocks=1,
        has_mass=bool(group.reach.heavy),
    )  # fmt: skip


def size_groups(
    groups: tuple[KvGroup, ...], kv_bytes: int, *, context: int, sequences: int, step_tokens: int
) -> tuple[GroupBill, ...]:
    """Blocks for every group within kv_bytes: as many as the group that keeps everything, but no more than
    `sequences` sequences of `context` tokens can hold. At least one block each, even where that is too much."""
    bytes_of = [block_bytes(group) for group in groups]
    most = [most_blocks(group.reach, context, step_tokens) for group in groups]

    rooms = [
        sequences * most_blocks(group.reach, context, 1) + blocks_for(step_tokens)  # one step's tokens are anybody's
        if group.reach.is_recent
        else sequences * limit
        for group, limit in zip(groups, most, strict=True)
    ]

    def sized(blocks: int) -> tuple[int, ...]:
        return tuple(max(1, min(blocks, room)) for room in rooms)

    low, high = 1, max([1, *rooms])
    while low < high:  # the most blocks that fit
        middle = (low + high + 1) // 2
        fits = sum(b * n for b, n in zip(bytes_of, sized(middle), strict=True)) <= kv_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return tuple(
        GroupBill(group.reach, len(group.layers), blocks, nbytes, limit)
        for group, blocks, nbytes, limit in zip(groups, sized(low), bytes_of, most, strict=True)
    )


def context_of(groups: tuple[GroupBill, ...], wanted: int) -> int:
    """Tokens that one sequence can have with these pools to itself."""
    rooms = [
        wanted if group.most <= group.blocks else group.blocks * BLOCK_TOKENS for group in groups
    ]  # a group that is bounded and too small has room for its blocks at least
    return min([wanted, *rooms])


def held_bytes(groups: tuple[KvGroup, ...], tokens: int) -> int:
    """What a sequence of so many computed tokens holds, in whole blocks: also what travels of it (E8)."""
    return sum(block_bytes(group) * kept_blocks(group.reach, tokens) for group in groups)


def bytes_for(groups: tuple[KvGroup, ...], context: int, step_tokens: int) -> int:
    """KV bytes that one sequence of `context` tokens needs."""
    return sum(block_bytes(group) * most_blocks(group.reach, context, step_tokens) for group in groups)

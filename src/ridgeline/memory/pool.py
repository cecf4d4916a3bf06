"""BlockPool: which KV blocks are free. Owns ids only, never bytes.

Every block is free, held or cached, and check() says so (C1). Lowest ids go first, so pages lie in order while
the pool is fresh, and memory the engine never needed is never touched. Refuses double frees and foreign ids.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ridgeline.kit.errors import InvariantError


class BlockPool:
    """Ids 0 to blocks-1. allocate and free are O(log blocks) a block."""

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise InvariantError(f"a pool of {blocks} blocks can hold nothing")
        self.blocks = blocks
        self._held = bytearray(blocks)  # 1: held
        self._heap = list(range(blocks))  # every free id once; may also carry ids taken by allocate_run
        self._queued = bytearray(b"\1") * blocks  # 1: the id is somewhere in the heap
        self._free = blocks

    @property
    def free_blocks(self) -> int:
        return self._free

    @property
    def held_blocks(self) -> int:
        return self.blocks - self._free - self.cached_blocks

    @property
    def cached_blocks(self) -> int:
        """Blocks kept for a prefix somebody may ask for again; none until there is a prefix tree."""
        return 0

    def allocate(self, count: int) -> list[int] | None:
        """The `count` lowest free ids, or None (and no change) when fewer are free."""
        if count > self._free:
            return None
        taken: list[int] = []
        while len(taken) < count:
            block = heapq.heappop(self._heap)
            self._queued[block] = 0
            if not self._held[block]:
                self._held[block] = 1
                taken.append(block)
        self._free -= count
        return taken

    def allocate_run(self, count: int) -> list[int] | None:
        """`count` neighbouring ids, first fit, or None: the contiguous baseline (C2). O(blocks)."""
        start = self._held.find(bytes(count))
        if start < 0 or not count:
            return [] if not count else None
        self._held[start : start + count] = b"\1" * count
        self._free -= count
        return list(range(start, start + count))

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back; raises InvariantError for one that is not held."""
        for block in blocks:
            if not (0 <= block < self.blocks and self._held[block]):
                raise InvariantError(f"block {block} was freed but is not held (pool of {self.blocks})")
            self._held[block] = 0
            self._free += 1
            if not self._queued[block]:
                self._queued[block] = 1
                heapq.heappush(self._heap, block)

    def check(self) -> None:
        """Raise InvariantError unless free + held + cached = all blocks and every free id can be found again."""
        held = self._held.count(1)
        if self._free + held + self.cached_blocks != self.blocks:
            lost = self.blocks - self._free - held - self.cached_blocks
            raise InvariantError(f"{self.blocks - lost} of {self.blocks} blocks accounted for; lost {lost}")
        queued = set(self._heap)
        if len(queued) != len(self._heap) or len(queued) != self._queued.count(1):
            raise InvariantError("the free heap holds an id twice or has forgotten one")
        reachable = sum(1 for block in queued if not self._held[block])
        if reachable != self._free:
            raise InvariantError(f"{self._free} blocks are free but {reachable} can be reached")

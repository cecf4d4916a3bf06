"""BlockPool: which KV blocks are free, held or cached. Owns ids and reference counts only, never bytes.

Every block is exactly one of the three, and check() says so (C1). Lowest ids go first, so pages lie in order while
the pool is fresh, and memory the engine never needed is never touched. Refuses double frees and foreign ids.
"""

# size: what may be done with a block, each a few lines

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable

import numpy as np

from ridgeline.kit.errors import InvariantError

NONE = -1  # where a group holds no block of a node


def with_blocks(pools: Iterable[BlockPool], blocks: Iterable[int]) -> list[tuple[BlockPool, int]]:
    """Each pool with its block, where there is one."""
    return [(pool, block) for pool, block in zip(pools, blocks, strict=True) if block != NONE]


class BlockPool:
    """Ids 0 to blocks-1. held: in `references` block tables; cached: in none, kept for a prefix somebody may ask for
    again. allocate, free and share are O(log blocks) a block."""

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise InvariantError(f"a pool of {blocks} blocks can hold nothing")
        self.blocks = blocks
        self._references = array("i", bytes(4 * blocks))
        self._taken = bytearray(blocks)  # 1: held or cached
        self._heap = list(range(blocks))  # every free id once; may also carry ids taken by allocate_run
        self._queued = bytearray(b"\1") * blocks  # 1: the id is somewhere in the heap
        self._free = blocks
        self._cached = 0

    @property
    def free_blocks(self) -> int:
        return self._free

    @property
    def held_blocks(self) -> int:
        return self.blocks - self._free - self._cached

    @property
    def cached_blocks(self) -> int:
        """Blocks kept for a prefix somebody may ask for again."""
        return self._cached

    def picture(self, cells: int) -> bytes:
        """Of at most so many cells, in order of ids: 16 x held + cached, each in fifteenths of the cell."""
        held = np.frombuffer(self._references, np.int32) > 0
        taken = np.frombuffer(self._taken, np.uint8) > 0
        begins = np.arange(min(cells, self.blocks)) * self.blocks // min(cells, self.blocks)
        sizes = np.diff(begins, append=self.blocks)
        shares = [-(-15 * np.add.reduceat(part, begins, dtype=np.int64) // sizes) for part in (held, taken & ~held)]
        return bytes((16 * shares[0] + shares[1]).astype(np.uint8))

    def references(self, block: int) -> int:
        """Block tables that hold the block."""
        return self._references[block]

    def allocate(self, count: int) -> list[int] | None:
        """The `count` lowest free ids, each referenced once, or None (and no change) when fewer are free."""
        if count > self._free:
            return None
        taken: list[int] = []
        while len(taken) < count:
            block = heapq.heappop(self._heap)
            self._queued[block] = 0
            if not self._taken[block]:
                self._take(block)
                taken.append(block)
        return taken

    def allocate_run(self, count: int) -> list[int] | None:
        """`count` neighbouring ids, first fit, or None: the contiguous baseline (C2). O(blocks)."""
        start = self._taken.find(bytes(count))
        if start < 0 or not count:
            return [] if not count else None
        run = list(range(start, start + count))
        for block in run:
            self._take(block)
        return run

    def share(self, block: int) -> None:
        """One more table holds a held or cached block (C4)."""
        self._known(block, "shared")
        if not self._references[block]:
            self._cached -= 1
        self._references[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Tables give blocks back; a block nobody holds any more is free. InvariantError for one that is not held."""
        for block in blocks:
            self._known(block, "freed")
            if not self._references[block]:
                raise InvariantError(f"block {block} was freed but is cached, not held")
            self._references[block] -= 1
            if not self._references[block]:
                self._give(block)

    def park(self, block: int) -> bool:
        """A table gives a block back; whether nobody holds it any more, so that it is cached now."""
        self._known(block, "parked")
        if not self._references[block]:
            raise InvariantError(f"block {block} was parked twice")
        self._references[block] -= 1
        self._cached += not self._references[block]
        return not self._references[block]

    def forget(self, block: int) -> None:
        """A cached block is free again."""
        self._known(block, "forgotten")
        if self._references[block]:
            raise InvariantError(f"block {block} was forgotten but is held")
        self._cached -= 1
        self._give(block)

    def check(self) -> None:
        """Raise InvariantError unless free + held + cached = all blocks and every free id can be found again."""
        held = sum(1 for count in self._references if count > 0)
        cached = sum(1 for taken, count in zip(self._taken, self._references, strict=True) if taken and not count)
        if cached != self._cached or self._free + held + cached != self.blocks:
            counted = self._free + held + self._cached
            raise InvariantError(f"{counted} of {self.blocks} blocks accounted for; lost {self.blocks - counted}")
        queued = set(self._heap)
        if len(queued) != len(self._heap) or len(queued) != self._queued.count(1):
            raise InvariantError("the free heap holds an id twice or has forgotten one")
        reachable = sum(1 for block in queued if not self._taken[block])
        if reachable != self._free:
            raise InvariantError(f"{self._free} blocks are free but {reachable} can be reached")

    def _take(self, block: int) -> None:
        self._taken[block] = 1
        self._references[block] = 1
        self._free -= 1

    def _give(self, block: int) -> None:
        self._taken[block] = 0
        self._free += 1
        if not self._queued[block]:
            self._queued[block] = 1
            heapq.heappush(self._heap, block)

    def _known(self, block: int, verb: str) -> None:
        if not (0 <= block < self.blocks and self._taken[block]):
            raise InvariantError(f"block {block} was {verb} but is not held (pool of {self.blocks})")

"""Table: the blocks of one sequence in one group, by slot. Owns the array that plans see; never the blocks' state."""

from __future__ import annotations

import numpy as np

from ridgeline.state.plan import Ints

DROPPED = -1


class Table:
    """Grows by doubling; what plans were given stays as it was, because entries they may read are never rewritten in
    place. length: blocks, those that were dropped counted too."""

    __slots__ = ("_array", "dropped", "length")

    def __init__(self) -> None:
        self._array: Ints = np.full(8, DROPPED, np.int32)
        self.length = 0
        self.dropped = 0

    @property
    def held(self) -> int:
        return self.length - self.dropped

    def view(self) -> Ints:
        """int32 [length]; later appends go behind it."""
        return self._array[: self.length]

    def __getitem__(self, index: int) -> int:
        return int(self._array[index])

    def append(self, blocks: list[int]) -> None:
        """DROPPED among them: nobody will ever read what lies there."""
        self.dropped += blocks.count(DROPPED)
        length = self.length + len(blocks)
        if length > len(self._array):
            grown = np.full(2 * length, DROPPED, np.int32)
            grown[: self.length] = self.view()
            self._array = grown
        self._array[self.length : length] = blocks
        self.length = length

    def replace(self, index: int, block: int) -> None:
        self._array = self._array.copy()
        self._array[index] = block

    def drop(self, begin: int, end: int) -> list[int]:
        """Blocks [begin, end) are never read again; those that were still held."""
        gone = [block for block in self._array[begin:end].tolist() if block != DROPPED]
        if gone:
            self._array = self._array.copy()
            self._array[begin:end] = DROPPED
            self.dropped += len(gone)
        return gone

    def cut(self, length: int) -> list[int]:
        """Everything behind the first `length` blocks is given back."""
        gone: list[int] = self._array[length : self.length].tolist()
        self._array = self._array.copy()
        self._array[length : self.length] = DROPPED
        self.length = min(length, self.length)
        return gone

    def blocks(self, begin: int = 0) -> list[int]:
        """Those held, in order, from number `begin` on."""
        return [block for block in self.view()[begin:].tolist() if block != DROPPED]

"""BlockMemory: every sequence's block table; the scheduler's SequenceMemory. Pages on demand (C3) or at once (C2).

Refuses to write: it only decides which block of the pool holds which 16 tokens of which sequence.
"""

from __future__ import annotations

import numpy as np

from ridgeline.kit.errors import InvariantError
from ridgeline.state.plan import Ints, SequenceId
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import Transfer

from .pool import BlockPool
from .storage.storage import BLOCK_TOKENS


class BlockMemory:
    """contiguous: hold neighbouring blocks for all the tokens a request may ever compute, from its admission on
    (what engines did before paging); otherwise waste is at most BLOCK_TOKENS - 1 tokens a sequence."""

    def __init__(self, pool: BlockPool, *, context: int, contiguous: bool = False, groups: int = 1) -> None:
        self.pool, self.groups = pool, groups
        self.context = context
        self.contiguous = contiguous
        self._tables: dict[SequenceId, Ints] = {}  # capacity grows by doubling; old arrays stay valid for old plans
        self._lengths: dict[SequenceId, int] = {}

    def fits_ever(self, tokens: int) -> bool:
        return blocks_for(tokens) <= self.pool.blocks

    def admit(self, sequence: Sequence) -> int | None:
        return 0

    def reserve(self, sequence: Sequence, computed: int, tokens: int) -> bool:
        held = self._lengths.get(sequence.id, 0)
        missing = blocks_for(computed + tokens) - held
        if missing <= 0:
            return True
        if self.contiguous and not held:
            most = sequence.request.tokens_most(self.context)
            blocks = self.pool.allocate_run(blocks_for(most))
        else:
            blocks = self.pool.allocate(missing)
        if blocks is None:
            return False
        self._append(sequence.id, held, blocks)
        return True

    def has_headroom(self, sequences: int) -> bool:
        return self.contiguous or self.pool.free_blocks >= sequences

    def longest(self, computed: int, tokens: int) -> int:
        return tokens

    def blocks_of(self, sequence: Sequence) -> tuple[Ints, ...]:
        """int32 [blocks held] for every group, views: later appends go behind them."""
        return (self._tables[sequence.id][: self._lengths[sequence.id]],) * self.groups

    def slots_of(self, sequence: Sequence, computed: int) -> tuple[int, ...]:
        return ()

    def state_of(self, sequence: Sequence) -> int:
        return -1

    def advance(self, sequence: Sequence, computed: int) -> None:
        pass

    def keep_places(self, sequence: Sequence, computed: int, places: tuple[int, ...]) -> None:
        raise InvariantError("branches cannot be kept yet")

    def transfers(self) -> tuple[Transfer, ...]:
        return ()

    def release(self, sequence: Sequence, computed: int) -> None:
        table = self._tables.pop(sequence.id, None)
        if table is not None:
            self.pool.free(table[: self._lengths.pop(sequence.id)].tolist())

    def holds(self, sequence: Sequence) -> int:
        """Blocks held by the sequence."""
        return self._lengths.get(sequence.id, 0)

    def check(self) -> None:
        self.pool.check()
        blocks = [block for i, table in self._tables.items() for block in table[: self._lengths[i]].tolist()]
        if len(set(blocks)) != len(blocks):
            raise InvariantError("a block is in two block tables")
        if len(blocks) != self.pool.held_blocks:
            raise InvariantError(f"{self.pool.held_blocks} blocks are held but {len(blocks)} are in block tables")

    def _append(self, sequence: SequenceId, held: int, blocks: list[int]) -> None:
        table = self._tables.get(sequence)
        length = held + len(blocks)
        if table is None or length > len(table):
            grown = np.full(max(8, 2 * length), -1, np.int32)
            if table is not None:
                grown[:held] = table[:held]
            table = self._tables[sequence] = grown
        table[held:length] = blocks
        self._lengths[sequence] = length


def blocks_for(tokens: int) -> int:
    """Blocks that `tokens` tokens fill, the last one perhaps partly."""
    return -(-tokens // BLOCK_TOKENS)

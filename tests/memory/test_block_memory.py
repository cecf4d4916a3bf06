"""BlockMemory: block tables that grow by paging (C3) or are reserved at once (C2)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.memory.block_memory import BlockMemory
from ridgeline.memory.pool import BlockPool
from ridgeline.memory.spans import blocks_for
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence


def sequence_of(number: int, prompt: int = 20, max_tokens: int = 40) -> Sequence:
    request = Request(str(number), (1,) * prompt, max_tokens)
    return Sequence(number, request, 0.0, list(request.prompt))


@given(st.lists(st.integers(1, 50), max_size=12))
def test_paging_wastes_less_than_a_block(steps: list[int]) -> None:
    memory = BlockMemory(BlockPool(64), context=1000)
    sequence = sequence_of(0)
    for step in steps:
        if not memory.reserve(sequence, sequence.tokens_computed, step):
            assert blocks_for(sequence.tokens_computed + step) > 64
            continue
        sequence.tokens_computed += step
        waste = memory.holds(sequence) * BLOCK_TOKENS - sequence.tokens_computed
        assert 0 <= waste < BLOCK_TOKENS
        table = memory.blocks_of(sequence)[0]
        assert table.dtype == np.int32 and len(set(table.tolist())) == memory.holds(sequence)
        memory.check()
    memory.release(sequence, 0)
    memory.check()
    assert memory.pool.held_blocks == 0


def test_old_tables_stay_valid_while_new_ones_grow() -> None:
    memory = BlockMemory(BlockPool(64), context=1000)
    sequence = sequence_of(0)
    assert memory.reserve(sequence, sequence.tokens_computed, 20)
    old = memory.blocks_of(sequence)[0]
    before = old.tolist()
    assert memory.reserve(sequence, sequence.tokens_computed, 900)
    assert old.tolist() == before == memory.blocks_of(sequence)[0][:2].tolist()


def test_a_failed_reservation_changes_nothing() -> None:
    memory = BlockMemory(BlockPool(4), context=1000)
    first, second = sequence_of(0), sequence_of(1)
    assert memory.reserve(first, 0, 33)
    assert not memory.reserve(second, 0, 17)
    assert memory.holds(second) == 0 and memory.pool.free_blocks == 1
    memory.check()


def test_contiguous_reserves_the_longest_output_in_neighbouring_blocks() -> None:
    memory = BlockMemory(BlockPool(9), context=1000, contiguous=True)
    sequences = [sequence_of(number, 20, 29) for number in range(3)]  # at most 48 computed tokens: 3 blocks
    for number, sequence in enumerate(sequences):
        assert memory.reserve(sequence, sequence.tokens_computed, 1)
        assert memory.blocks_of(sequence)[0].tolist() == [3 * number, 3 * number + 1, 3 * number + 2]
    memory.release(sequences[0], 0)
    memory.release(sequences[2], 0)
    assert not memory.reserve(sequence_of(4, 20, 60), 0, 1)  # 79 tokens: 5 blocks; 6 are free, not in a row
    memory.check()


def test_fits_ever_counts_whole_blocks() -> None:
    memory = BlockMemory(BlockPool(2), context=1000)
    assert memory.fits_ever(32) and not memory.fits_ever(33)

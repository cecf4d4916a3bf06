"""Recurrent state: slots and snapshots counted whatever happens; bytes as the storage says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.kit.capability import SNAPSHOT, TRUNCATION
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.recurrent_memory import RecurrentMemory
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.memory.storage.recurrent import STORAGE
from ridgeline.ops.recurrent import StateShape
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import CopyState

SHAPE = StateShape(3, 5, groups=1, states=4, taps=3)  # 15 + 8 channels: parts end inside cache lines


def sequence(number: int) -> Sequence:
    return Sequence(number, Request(str(number), (1, 2, 3), 4), 0.0, [1, 2, 3])


def test_bytes_are_those_of_the_shape() -> None:
    assert (STORAGE.conv_bytes(SHAPE), STORAGE.scan_bytes(SHAPE)) == (2 * 23 * 4, 3 * 4 * 5 * 4)
    assert STORAGE.scan_offset(SHAPE) == 192
    assert STORAGE.layer_bytes(SHAPE) == 192 + 256
    published = StateShape(80, 64, groups=1, states=128, taps=4)  # mamba2-2.7b: recipes 5.1
    assert STORAGE.scan_bytes(published) == 80 * 64 * 128 * 4
    assert STORAGE.gives == {SNAPSHOT}
    assert TRUNCATION not in STORAGE.gives


def test_views_of_a_pool_do_not_overlap() -> None:
    pool = RecurrentPool(STORAGE, SHAPE, layers=2, slots=3)
    assert pool.nbytes == 3 * 2 * STORAGE.layer_bytes(SHAPE)
    parts = [(slot, layer) for slot in range(3) for layer in range(2)]
    for number, (slot, layer) in enumerate(parts):
        pool.conv(slot, layer)[:] = number
        pool.scan(slot, layer)[:] = -number
    for number, (slot, layer) in enumerate(parts):
        assert (pool.conv(slot, layer) == number).all()
        assert (pool.scan(slot, layer) == -number).all()
    pool.copy(2, 0)
    np.testing.assert_array_equal(pool.scan(0, 1), pool.scan(2, 1))
    np.testing.assert_array_equal(pool.conv(0, 0), pool.conv(2, 0))
    for wrong in ((3, 0), (0, 2), (-1, 0)):
        with pytest.raises(InvariantError, match="no state"):
            pool.conv(*wrong)


@given(st.lists(st.tuples(st.sampled_from(("reserve", "release", "save", "restore", "drop")), st.integers(0, 4))))
def test_nothing_is_lost(moves: list[tuple[str, int]]) -> None:
    memory, people = RecurrentMemory(5), [sequence(number) for number in range(5)]
    snapshots: dict[int, list[int]] = {number: [] for number in range(5)}
    computed = dict.fromkeys(range(5), 0)
    for move, number in moves:
        one, holds = people[number], memory.holds(people[number])
        if move == "reserve":
            free = memory.pool.free_blocks
            assert memory.reserve(one, computed[number], 7) == bool(holds or free)
            computed[number] += 7 if memory.holds(one) else 0
        elif move == "release":
            memory.release(one, computed[number])
            snapshots[number], computed[number] = [], 0
            assert memory.holds(one) == 0
        elif move == "save" and holds:
            taken = memory.save(one)
            snapshots[number] += [] if taken is None else [taken]
            told = memory.transfers()
            assert told == (() if taken is None else (CopyState(memory.state_of(one), taken),))
        elif move == "restore" and snapshots[number]:
            memory.restore(one, snapshots[number][-1])
            assert memory.transfers() == (CopyState(snapshots[number][-1], memory.state_of(one)),)
        elif move == "drop" and snapshots[number]:
            memory.drop(snapshots[number].pop())
        memory.check()
        assert memory.pool.free_blocks + sum(map(memory.holds, people)) == 5


def test_what_no_state_can_do_is_an_error() -> None:
    memory, one, other = RecurrentMemory(3), sequence(0), sequence(1)
    assert memory.reserve(one, 0, 3)
    assert memory.reserve(other, 0, 3)
    snapshot = memory.save(one)
    assert snapshot is not None
    assert memory.save(other) is None  # no slot is free
    with pytest.raises(InvariantError, match="has no snapshot"):
        memory.restore(other, snapshot)
    memory.drop(snapshot)
    with pytest.raises(InvariantError, match="no snapshot"):
        memory.drop(snapshot)
    memory.release(one, 3)
    with pytest.raises(InvariantError, match="holds no state"):
        memory.reserve(one, 3, 1)
    with pytest.raises(InvariantError, match="rolled back by snapshot"):
        memory.keep_places(one, 3, (0,))
    assert (memory.blocks_of(one), memory.slots_of(one, 0), memory.longest(5, 9)) == ((), (), 9)

"""BlockPool: nothing lost, lowest ids first, whatever the order of taking and giving back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.pool import BlockPool

BLOCKS = 24


class PoolMachine(RuleBasedStateMachine):
    """The pool beside a plain set of free ids."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS)
        self.free = set(range(BLOCKS))
        self.held: list[list[int]] = []

    @rule(count=st.integers(0, BLOCKS + 2))
    def allocate(self, count: int) -> None:
        blocks = self.pool.allocate(count)
        if count > len(self.free):
            assert blocks is None
            return
        assert blocks == sorted(self.free)[:count]
        self.take(blocks)

    @rule(count=st.integers(0, 8))
    def allocate_run(self, count: int) -> None:
        starts = [b for b in range(BLOCKS - count + 1) if set(range(b, b + count)) <= self.free]
        blocks = self.pool.allocate_run(count)
        assert blocks == (list(range(starts[0], starts[0] + count)) if starts else None)
        if blocks:
            self.take(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.free(blocks)
        self.free |= set(blocks)

    @invariant()
    def counted(self) -> None:
        self.pool.check()
        assert self.pool.free_blocks == len(self.free)
        assert self.pool.held_blocks == BLOCKS - len(self.free)
        assert self.pool.cached_blocks == 0

    def take(self, blocks: list[int]) -> None:
        assert set(blocks) <= self.free
        self.free -= set(blocks)
        self.held.append(blocks)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_block_is_not_freed_twice() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    assert blocks == [0, 1]
    pool.free(blocks)
    with pytest.raises(InvariantError, match="not held"):
        pool.free([1])
    with pytest.raises(InvariantError, match="not held"):
        pool.free([-1])


def test_a_block_is_held_until_its_last_table_gives_it_back() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1) or [-1]
    pool.share(block)
    assert not pool.park(block)
    assert pool.park(block) and (pool.held_blocks, pool.cached_blocks) == (0, 1)
    assert pool.allocate(2) is None  # cached is not free
    pool.share(block)
    with pytest.raises(InvariantError, match="is held"):
        pool.forget(block)
    pool.park(block)
    for wrong in (pool.park, lambda block: pool.free([block])):
        with pytest.raises(InvariantError):
            wrong(block)
    pool.forget(block)
    pool.check()
    assert pool.free_blocks == 2
    with pytest.raises(InvariantError, match="shared"):
        pool.share(block)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(InvariantError):
        BlockPool(0)


def test_check_finds_a_lost_block() -> None:
    pool = BlockPool(4)
    pool.allocate(1)
    pool._references[0] = pool._taken[0] = 0
    with pytest.raises(InvariantError, match="lost 1"):
        pool.check()


def test_the_heap_does_not_grow_with_runs() -> None:
    pool = BlockPool(8)
    for _ in range(100):
        pool.free(pool.allocate_run(5) or [])
    assert len(pool._heap) == 8

"""BlockMemory with the prefix tree: what is shared is right, nothing is lost, the closed forms hold (C1, C4, C5)."""
# size: one argument a choice of the scenario

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.block_memory import BlockMemory
from ridgeline.memory.pool import BlockPool
from ridgeline.memory.spans import blocks_for
from ridgeline.memory.tiers import Tiers
from ridgeline.ops.kv import Reach
from ridgeline.state.sequence import Sequence

from .keeping import Driver


class Always:
    """A break-even at `least` tokens."""

    def __init__(self, least: int = 1) -> None:
        self.least = least

    def least_tokens(self, tier: str) -> int:
        return self.least

    def pays(self, tokens: int, tier: str) -> bool:
        return tokens >= self.least


def shared_memory(
    blocks: int, *, groups: int = 1, waits: bool = True, host: int = 0, disk: int = 0, least: int = 1
) -> BlockMemory:
    """host, disk: nodes that each tier has room for."""
    pools = tuple(BlockPool(blocks) for _ in range(groups))
    tiers = Tiers({"host": 10 * host, "disk": 10 * disk}, 10, Always(least), "model") if host or disk else None
    return BlockMemory(pools, context=4096, reaches=(Reach(),) * groups, alone="", waits=waits, tiers=tiers)


class Machine(RuleBasedStateMachine):
    """Random texts over few letters, so that they share; every kept token is checked whenever it may be read."""

    @initialize(
        blocks=st.integers(8, 40), groups=st.integers(1, 2), waits=st.booleans(), chunk=st.sampled_from((1, 7, 16, 33)),
        kind=st.sampled_from(("tree", "tree", "tiers", "tiers", "none", "window", "sinks", "h2o")),
        host=st.integers(0, 6), disk=st.integers(0, 9), least=st.sampled_from((1, 40)),
    )  # fmt: skip
    def start(
        self, blocks: int, groups: int, waits: bool, chunk: int, kind: str, host: int, disk: int, least: int
    ) -> None:
        if kind == "tiers":
            memory = shared_memory(blocks, groups=groups, waits=waits, host=host, disk=disk, least=least)
        elif kind == "tree":
            memory = shared_memory(blocks, groups=groups, waits=waits)
        else:
            reach = {"none": Reach(), "window": Reach(20), "sinks": Reach(20, 4), "h2o": Reach(8, 4, 20)}[kind]
            pools = tuple(BlockPool(blocks) for _ in range(2))
            memory = BlockMemory(pools, context=4096, reaches=(reach, Reach()), step_tokens=chunk)
        self.driver = Driver(memory, chunk=chunk)

    @rule(data=st.data(), output=st.integers(1, 30), scored=st.booleans())
    def add(self, data: Any, output: int, scored: bool) -> None:
        waiting = [*self.driver.waiting, *self.driver.running]
        text: list[int] = []
        if waiting and data.draw(st.booleans()):
            other = data.draw(st.sampled_from(waiting)).tokens
            text = list(other[: data.draw(st.integers(0, len(other)))])
        text += data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=40))
        if self.driver.memory.fits_ever(len(text) + output):
            self.driver.add(text, output, scored=scored)

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.driver.step()

    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        here = [*self.driver.waiting, *self.driver.running]
        if here:
            self.driver.finish(data.draw(st.sampled_from(here)))

    @invariant()
    def nothing_lost(self) -> None:
        if hasattr(self, "driver"):
            self.driver.memory.check()

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.run()
            for pool in self.driver.memory.pools:
                assert pool.held_blocks == 0


TestSharing = Machine.TestCase
TestSharing.settings = settings(max_examples=150, stateful_step_count=20, deadline=None)


def test_choices_of_one_prompt_hold_it_once() -> None:
    """C4: KV = Sp + N * Sg in blocks: floor(Sp / 16) are shared, the rest is each choice's own."""
    for prompt, output, choices in ((100, 37, 8), (96, 20, 3), (31, 40, 4)):
        driver = Driver(shared_memory(400), chunk=512)
        text = [i % 7 for i in range(prompt)]
        sequences = [driver.add(text, output) for _ in range(choices)]
        for _ in range(output - 1):
            driver.step()
        assert len(driver.running) == choices
        own = sum(blocks_for(s.tokens_computed) - prompt // 16 for s in sequences)
        assert driver.memory.pool.held_blocks == prompt // 16 + own
        driver.run()
        assert driver.computed == prompt + choices - 1 + choices * (output - 1)  # the prompt once, then one token each


def test_a_wave_that_shares_computes_it_once() -> None:
    """64 requests at once, 512 tokens in common: the first computes them, the others wait and find them."""
    driver = Driver(shared_memory(1000), chunk=512)
    common = [i % 11 for i in range(512)]
    draw = random.Random(0)
    for _ in range(64):
        driver.add([*common, *(draw.randrange(1000) for _ in range(32))], 4)
    driver.step()
    assert (len(driver.running), driver.deferred) == (1, 1)
    driver.step()
    assert len(driver.running) == 64
    driver.run()
    assert driver.computed <= 512 + 64 * (32 + 3)
    report = driver.memory.report()
    assert report["tokens shared"] >= 63 * 512 and report["misses"] == {"first seen": 1, "diverged": 63}


def test_a_promise_ends_with_who_made_it() -> None:
    driver = Driver(shared_memory(100), chunk=16)
    text = [i % 5 for i in range(200)]
    first, second = driver.add(text, 3), driver.add([*text, 9], 3)
    driver.step()
    assert driver.running == [first] and driver.waiting == [second]
    driver.finish(first)
    driver.step()
    assert driver.running == [second] and driver.shared[second.id] == 16  # what the first had computed
    driver.run()


def test_scored_prompts_are_computed_and_shared_with_others() -> None:
    driver = Driver(shared_memory(100), chunk=64)
    text = [i % 5 for i in range(60)]
    driver.add(text, 2)
    driver.run()
    scored = driver.add(text, 2, scored=True)
    driver.run()
    assert driver.shared[scored.id] == 0
    assert driver.memory.report()["misses"] == {"first seen": 1, "scores wanted": 1}
    assert driver.memory.pool.cached_blocks == 3 + 2  # both wrote the same prompt: one copy stays; their ends differ


def test_a_resumed_sequence_finds_its_own_blocks() -> None:
    driver = Driver(shared_memory(100), chunk=64)
    sequence = driver.add([i % 5 for i in range(50)], 20)
    for _ in range(9):
        driver.step()
    computed = sequence.tokens_computed
    driver.running.remove(sequence)
    driver.memory.release(sequence, computed)
    sequence.tokens_computed = 0
    driver.waiting.append(sequence)
    driver.step()
    assert driver.shared[sequence.id] == computed == sequence.tokens_computed - 1
    driver.run()


def test_what_drops_tokens_does_not_share() -> None:
    with pytest.raises(InvariantError, match="cannot share"):
        BlockMemory(BlockPool(4), context=64, reaches=(Reach(32),), alone="")
    memory = BlockMemory(BlockPool(4), context=64, reaches=(Reach(32),), alone="not prefix-stable")
    driver = Driver(memory, chunk=16)
    driver.add(range(20), 2)
    driver.run()
    assert memory.report()["misses"] == {"not prefix-stable": 1}


def test_a_window_holds_a_constant_number_of_blocks() -> None:
    """K7, C9: what Reach.kept says in whole blocks, at every length."""
    memory = BlockMemory((BlockPool(300), BlockPool(8)), context=4096, reaches=(Reach(), Reach(40, 4)), step_tokens=16)
    driver = Driver(memory, chunk=16)
    sequence: Sequence = driver.add([1, 2, 3] * 500, 100)
    most = 0
    while driver.waiting or driver.running:
        driver.step()
        most = max(most, memory.pools[1].held_blocks)
    assert most <= 6 and sequence.tokens_known == 1600


def test_evicted_blocks_come_back_from_host_and_disk() -> None:
    """C7: what had to leave the pool is loaded, not computed; the bytes are checked by the driver."""
    memory = shared_memory(12, host=4, disk=100)
    driver = Driver(memory, chunk=64)
    texts = [[(i * k) % 13 for i in range(100)] for k in (1, 2, 3)]
    for text in texts * 3:
        driver.add(text, 3)
        driver.run()
    report = memory.report()
    assert report["tokens shared"] == 6 * 99 + 2 and report["misses"] == {"first seen": 1, "diverged": 2}
    assert report["loaded"] > 20 and 0 < report["in host"] <= 4 and report["in disk"] > 0
    assert {tier for tier, _ in driver.pages.saved.values()} == {"host", "disk"}


def test_a_short_beginning_is_not_saved() -> None:
    """B10: below the break-even it is computed again; what is needed for a longer one is saved with it."""
    memory = shared_memory(8, host=100, least=49)
    driver = Driver(memory, chunk=64)
    for k in (1, 2, 3, 4):
        driver.add([(i * k) % 13 for i in range(40)], 3)
        driver.run()
    assert memory.report()["saved"] == 0
    for k in (1, 2, 3):
        driver.add([(i * k + 1) % 13 for i in range(70)], 3)
        driver.run()
    assert memory.report()["saved"] >= 4


def test_nothing_saved_outlives_the_smallest_tier() -> None:
    memory = shared_memory(6, host=3)
    driver = Driver(memory, chunk=64)
    for k in range(1, 12):
        driver.add([(i * k) % 13 for i in range(60)], 3)
        driver.run()
        assert memory.report()["in host"] <= 3 and len(driver.pages.saved) <= 3


def test_a_saved_beginning_that_is_lost_takes_what_follows_along() -> None:
    """C7: the older node falls out of the last tier while the one behind it is saved too, and is its only child."""
    memory = shared_memory(4, host=3)
    driver = Driver(memory, chunk=64)
    driver.add([1] * 48, 2)
    driver.run()
    tree = memory.sharing.tree
    first = next(iter(tree.root("").children.values()))
    second = next(iter(first.children.values()))
    assert tree.make_room(4) and first.saved >= 0 and second.saved >= 0
    assert memory.sharing.tiers is not None
    memory.sharing.tiers.forget(first)
    tree._lose(first)
    assert not list(tree.nodes()) and memory.sharing.tiers.count("host") == 0
    tree.check()


def test_an_accepted_branch_moves_to_where_a_chain_would_lie() -> None:
    """I9: places 0, 2, 5 of a tree behind 20 computed tokens become the next three."""
    memory = shared_memory(10, groups=2)
    driver = Driver(memory, chunk=64)
    sequence = driver.add(range(20), 30)
    driver.step()
    computed = sequence.tokens_computed
    assert memory.reserve(sequence, computed, 8)
    tables = memory.blocks_of(sequence)
    for group, table in enumerate(tables):
        for place in range(8):
            slot = computed + place
            driver.pages.pages[group][table[slot // 16], slot % 16] = 100 + place
    memory.keep_places(sequence, computed, (0, 2, 5))
    driver.pages.carry_out()
    for group, table in enumerate(tables):
        kept = [int(driver.pages.pages[group][table[s // 16], s % 16]) for s in range(computed, computed + 3)]
        assert kept == [100, 102, 105]
    with pytest.raises(InvariantError, match="order"):
        memory.keep_places(sequence, computed, (1, 0))

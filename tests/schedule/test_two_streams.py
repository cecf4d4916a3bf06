"""Two streams of steps over one pool: whatever arrives, whichever step ends first, tokens as if alone, no block lost,
and no step touches a block that the other one writes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize

from ridgeline.engine.partition import Partition, PartitionOptions
from ridgeline.engine.streams import StreamsEngine
from ridgeline.kit.errors import UserError
from ridgeline.schedule.policy import make_policy
from ridgeline.schedule.remaining import RemainingOptions, RemainingPolicy
from ridgeline.schedule.streams import MANY, ONE
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence
from tests.engine.scripted import VOCABULARY, Broken, ScriptedRunner, run_to_end, scripted_engine

from .any_requests import AnyRequests

BLOCK = 16


class ScriptedLanes:
    """State is moved when a step starts; it computes when it ends, and any of those that run may end first."""

    def __init__(self, runner: ScriptedRunner, seed: int) -> None:
        self.runner, self.random = runner, random.Random(seed)
        self.flying: dict[str, tuple[StepPlan, float, float]] = {}
        self.overlaps = 0

    def start(self, lane: str, plan: StepPlan, share: float) -> None:
        if lane in self.flying or share + sum(one[2] for one in self.flying.values()) > 1.0 + 1e-9:
            raise Broken("a lane twice, or more than the machine")
        for move in plan.transfers:
            self.runner.states[move.target] = self.runner.states[move.source]
        for other, _, _ in self.flying.values():
            if touched(plan, written=True) & touched(other) or touched(plan) & touched(other, written=True):
                raise Broken("a step writes what the other one uses")
            if {one.sequence for one in plan.entries} & {one.sequence for one in other.entries}:
                raise Broken("a sequence in two steps")
        self.flying[lane] = (plan, self.runner.clock.now(), share)
        self.overlaps += len(self.flying) > 1

    def finish(self) -> tuple[str, StepResult]:
        lane = self.random.choice(sorted(self.flying))
        plan, started, share = self.flying.pop(lane)
        self.runner.clock.advance(0.001)
        rows = tuple(self.runner.run(entry) for entry in plan.entries)
        return lane, StepResult(rows, started, self.runner.clock.now(), share=share)


def touched(plan: StepPlan, *, written: bool = False) -> set[int]:
    found: set[int] = set()
    for entry in plan.entries:
        blocks = entry.blocks[0].tolist()
        end = -(-(entry.start + len(entry.tokens)) // BLOCK)
        found |= set(blocks[entry.start // BLOCK if written else 0 : end])
    return found


def streams_engine(seed: int = 0, **options: Any) -> StreamsEngine:
    plain = scripted_engine(**options)
    lanes = ScriptedLanes(plain.runner, seed)
    return StreamsEngine(
        plain.scheduler, plain.runner, lanes, Partition((0.0, 0.5, 1.0)), lambda plans, stream, share: 0.0,
        facts=plain.facts, clock=plain.clock, observer=plain.observer, close=lambda: None,
    )  # fmt: skip


class TwoStreams(AnyRequests):
    @initialize(
        seed=st.integers(0, 1000), blocks=st.integers(1, 12), sequences=st.integers(1, 6),
        extra_tokens=st.integers(0, 40), chunk=st.none() | st.integers(1, 30), prefix=st.booleans(),
        policy=st.sampled_from(["remaining", "remaining:ageing=0", "fcfs", "priority", "shortest:predict=oracle"]),
    )  # fmt: skip
    def start(self, sequences: int, extra_tokens: int, **options: Any) -> None:
        self.engine = streams_engine(
            sequences=sequences, step_tokens=sequences + extra_tokens, step_logit_rows=sequences + 4, **options
        )
        self.begin()


TestTwoStreams = TwoStreams.TestCase
TestTwoStreams.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_steps_of_both_streams_run_at_a_time() -> None:
    engine = streams_engine(sequences=4, step_tokens=32, step_logit_rows=8, chunk=16, seed=3)
    for number in range(6):
        engine.add(Request(f"r{number}", tuple((number * 7 + i) % VOCABULARY for i in range(60)), 20))
    run_to_end(engine)
    assert engine.lanes.overlaps > 4


def test_a_sequence_that_a_step_computes_ends_with_that_step() -> None:
    engine = streams_engine(sequences=2, step_tokens=32, step_logit_rows=8)
    engine.add(Request("a", (1,) * 20, 5))
    engine.add(Request("b", (2,), 5))
    engine._start()
    assert engine.cancel("a") is None and engine.cancel("b") is None
    ends = [event.finish for _ in range(2) for event in engine.step()]
    assert ends == ["cancelled", "cancelled"] and not engine.has_work


# -- policy remaining


def sequence(number: int, tokens: int, arrival_s: float, computed: int = 0) -> Sequence:
    return Sequence(number, Request(f"r{number}", (1,) * tokens, 9), arrival_s, [1] * tokens, computed)


def test_the_fewest_tokens_first_and_a_single_one_before_all() -> None:
    policy = RemainingPolicy()
    queue = [
        sequence(0, 500, 0.0), sequence(1, 40, 0.0), sequence(2, 600, 0.0, 590), sequence(3, 90, 3.0, 89),
        sequence(4, 90, 2.0, 89),
    ]  # fmt: skip
    assert [one.id for one in sorted(queue, key=policy.rank)] == [4, 3, 2, 1, 0]


def test_waiting_counts_and_turns_nobody_round() -> None:
    policy = RemainingPolicy(RemainingOptions(ageing=100.0))
    long, late, later = sequence(0, 500, 0.0), sequence(1, 60, 4.0), sequence(2, 60, 5.0)
    assert policy.rank(late) < policy.rank(long) < policy.rank(later)
    assert policy.passes(late, long) and not policy.passes(later, long) and not policy.outranks(late, long)
    assert not policy.passes(late, sequence(3, 20, 9.0, 19))  # nobody passes one with a single token
    with pytest.raises(UserError, match="ageing"):
        make_policy("remaining:ageing=-1")


def test_a_short_one_overtakes_a_long_one_at_work() -> None:
    engine = streams_engine(sequences=4, step_tokens=16, step_logit_rows=8, policy="remaining", blocks=64)
    engine.add(Request("long", tuple(range(60)) * 3, 2))
    engine.step()
    engine.add(Request("short", (5, 6, 7, 8), 2))
    order = [event.request for event in run_to_end(engine) if event.finish]
    assert order == ["short", "long"] and engine.scheduler.preemptions == 0


# -- the partition


def seconds(stream: int, share: float) -> float:
    """Stream 0 gains all the way; stream 1 hardly over half of the machine."""
    return 1.0 / share if stream == 0 else 1.0 / min(1.0 - share, 0.5) + 0.05 / (1.0 - share)


TENTHS = tuple(count / 10 for count in range(11))


def test_the_first_gets_all_that_the_others_slack_allows() -> None:
    partition = Partition(TENTHS, PartitionOptions(beta=1.05))
    assert partition.decide(seconds, 0.2) == 0.5 and partition.calls <= 4
    wide = Partition(TENTHS, PartitionOptions(beta=2.0))
    found = wide.decide(seconds, 0.2)
    assert seconds(1, found) <= 2.0 * seconds(1, 0.1) < seconds(1, found + 0.1)


def test_when_room_runs_out_the_other_stream_comes_first() -> None:
    partition = Partition(TENTHS, PartitionOptions(alpha=2.0, beta=1.05, switch=0.7))
    assert partition.decide(seconds, 0.70) == 0.5
    assert partition.decide(seconds, 0.71) == 0.5  # 1 / 0.5 is 1.8 times 1 / 0.9; 1 / 0.4 would be 2.25 times
    assert Partition(TENTHS, PartitionOptions(alpha=5.0)).decide(seconds, 0.9) == 0.2


def test_small_moves_are_not_made_and_a_fixed_share_stays() -> None:
    partition = Partition(TENTHS, PartitionOptions(beta=2.0, delta=0.3))
    assert partition.decide(seconds, 0.2) == 0.5 and partition.moves == 0
    fixed = Partition(TENTHS, PartitionOptions(share=0.3, beta=2.0))
    assert fixed.decide(seconds, 0.2) == 0.3 and fixed.calls == 0


def test_two_threads_leave_one_point() -> None:
    partition = Partition((0.0, 0.5, 1.0))
    assert not partition.is_open and partition.decide(seconds, 0.9) == 0.5 and partition.calls == 0


def test_streams_are_disjoint() -> None:
    for one in (sequence(0, 5, 0.0), sequence(1, 5, 0.0, 4)):
        assert MANY.takes(one) != ONE.takes(one)

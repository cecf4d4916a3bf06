"""Whatever arrives, in whatever order, under whatever limits: invariants after every step, tokens as if alone."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request
from tests.engine.scripted import VOCABULARY, alone, scripted_engine

from .any_requests import AnyRequests

# The patience is a few steps of the scripted runner (1 ms each), so that ageing happens.
ALL = (
    "fcfs", "priority", "priority:patience_s=0.02", "deadline", "deadline:predict=oracle,patience_s=0.02", "shortest",
    "shortest:predict=oracle,patience_s=0.02", "shortest:predict=none", "fair", "fair:weights=a=3+b=0.5",
)  # fmt: skip


class Schedules(AnyRequests):
    """Random requests, steps and cancels against an engine of random limits, under any policy."""

    @initialize(
        blocks=st.integers(1, 12),
        sequences=st.integers(1, 6),
        extra_tokens=st.integers(0, 40),
        extra_rows=st.integers(0, 20),
        chunk=st.none() | st.integers(1, 30),
        batching=st.sampled_from(["continuous", "static"]),
        cache=st.booleans(),
        contiguous=st.booleans(),
        prefix=st.booleans(),
        policy=st.sampled_from(ALL),
    )
    def start(
        self, blocks: int, sequences: int, extra_tokens: int, extra_rows: int, contiguous: bool, **o: Any
    ) -> None:
        self.engine = scripted_engine(
            blocks, contiguous=contiguous, sequences=sequences, step_tokens=sequences + extra_tokens,
            step_logit_rows=sequences + extra_rows, **o,
        )  # fmt: skip
        self.begin()

    @rule()
    def cancel_in_flight(self) -> None:
        scheduler = self.engine.scheduler
        plan = scheduler.plan(0.0)
        if plan.is_empty:
            return
        result = self.engine.runner.collect(self.engine.runner.submit(plan))
        flying = [name for name, one in scheduler._by_request.items() if one.id == plan.entries[-1].sequence]
        assert scheduler.cancel(flying[0], 0.0) is None
        self.events += scheduler.commit(plan, result)


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_ten_thousand_requests_with_cancels_leave_every_block_free() -> None:
    draw = random.Random(7)
    engine = scripted_engine(48, sequences=32, step_tokens=256, step_logit_rows=32, chunk=48)
    names: list[str] = []
    asked: dict[str, Request] = {}
    ids: dict[str, list[int]] = {}
    ends: dict[str, str] = {}

    def take(events: list[TokenEvent]) -> None:
        for event in events:
            ids.setdefault(event.request, []).extend(event.tokens)
            if event.finish:
                assert event.request not in ends
                ends[event.request] = event.finish

    number = steps = 0
    while number < 10_000 or engine.has_work:
        for _ in range(draw.randrange(0, 6) if number < 10_000 else 0):
            prompt = tuple(draw.randrange(VOCABULARY) for _ in range(draw.choice((1, 3, 9, 17, 40))))
            request = Request(f"r{number}", prompt, 100 if draw.random() < 0.05 else draw.randrange(1, 7))
            engine.add(request)
            names.append(request.id)
            asked[request.id] = request
            number += 1
        if names and draw.random() < 0.6:
            event = engine.cancel(names[-draw.randrange(1, min(len(names), 60) + 1)])
            take([event] if event else [])
        take(engine.step())
        steps += 1
        if steps % 8 == 0:
            engine.check()
    engine.check()
    pool = engine.scheduler.memory.pool
    assert pool.free_blocks == pool.blocks
    assert set(ends) == set(asked)
    assert sum(end == "cancelled" for end in ends.values()) > 200
    assert engine.scheduler.preemptions > 0
    for name, request in asked.items():
        expected = alone(request)[0]
        assert tuple(ids[name]) == (expected if ends[name] != "cancelled" else expected[: len(ids[name])])


def test_no_request_starves_under_endless_arrivals() -> None:
    """With a newcomer every step, each request still ends within a bound: the time of those before it."""
    engine = scripted_engine(8, sequences=4, step_tokens=16, step_logit_rows=4)
    finished: dict[str, int] = {}
    for step in range(400):
        engine.add(Request(f"r{step}", (1, 2, 3, step % VOCABULARY), 8))
        for event in engine.step():
            if event.finish:
                finished[event.request] = step
    order = [int(name[1:]) for name in finished]
    assert order == sorted(order) and len(order) > 150
    assert all(finished[f"r{number}"] <= 8 + 3 * number for number in order)

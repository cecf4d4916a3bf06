"""Any requests, steps and cancels, drawn by hypothesis, and what must be so at the end; which engine: the heir says."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ridgeline.kit.errors import CapacityError
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request
from tests.engine.scripted import VOCABULARY, alone, ids_of, prompt_scores, run_to_end

tokens = st.integers(0, VOCABULARY - 1)
SHARED = tuple((7 * i) % VOCABULARY for i in range(60))  # what many prompts begin with
prompts = st.builds(
    lambda cut, own: (*SHARED[:cut], *own), st.integers(0, 60), st.lists(tokens, min_size=1, max_size=20)
)
requests = st.fixed_dictionaries(
    {
        "prompt": st.lists(tokens, min_size=1, max_size=70).map(tuple) | prompts,
        "max_tokens": st.integers(1, 40),
        "stop_ids": st.lists(tokens, max_size=6).map(tuple),
        "ignore_stop": st.booleans(),
        "prompt_logprobs": st.none() | st.just(0),
        "priority": st.integers(-1, 2),
        "tenant": st.sampled_from(["", "a", "b"]),
        "deadline_s": st.none() | st.floats(0.001, 0.2),
        "ttft_deadline_s": st.none() | st.floats(0.001, 0.1),
    }
)


class AnyRequests(RuleBasedStateMachine):
    """`engine` is made by an @initialize of the heir, which then calls begin()."""

    engine: Any

    def begin(self) -> None:
        self.asked: dict[str, Request] = {}
        self.events: list[TokenEvent] = []

    @rule(fields=requests)
    def add(self, fields: dict[str, Any]) -> None:
        request = Request(f"r{len(self.asked)}", **fields)
        try:
            self.engine.add(request)
        except CapacityError:
            assert not self.engine.scheduler.memory.fits_ever(request.tokens_most(self.engine.facts.context))
        else:
            self.asked[request.id] = request

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.events += self.engine.step()
            self.engine.check()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.asked:
            event = self.engine.cancel(data.draw(st.sampled_from(sorted(self.asked))))
            self.events += [event] if event else []

    @invariant()
    def nothing_lost(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.events += run_to_end(self.engine, limit=20_000)
        assert self.engine.scheduler.memory.pool.held_blocks == 0
        ids = ids_of(self.events)
        for name, request in self.asked.items():
            ends = [event.finish for event in self.events if event.request == name and event.finish]
            assert len(ends) == 1  # exactly one last event
            expected, finish = alone(request)
            if ends[0] == "cancelled":
                assert ids.get(name, ()) == expected[: len(ids.get(name, ()))]
                continue
            assert (ids[name], ends[0]) == (expected, finish)
            if request.prompt_logprobs is not None:
                scored = [s.logprob for event in self.events if event.request == name for s in event.prompt_scored]
                assert scored == prompt_scores(request)

"""StreamsEngine: the same loop over two streams, whose steps overlap (E4).

It plans and commits, one at a time; lanes compute. A stream that is alone has the whole machine; two share it as the
partition says.
"""
# size: one argument a part it is joined from

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Protocol

from ridgeline.kit.clock import Clock
from ridgeline.schedule.choose import Chooser
from ridgeline.schedule.scheduler import Scheduler
from ridgeline.schedule.streams import ALL, MANY, ONE, STREAMS, Stream
from ridgeline.state.event import TokenEvent
from ridgeline.state.messages import EngineFacts
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.ports import KeptState, StepObserver, StepRunner
from ridgeline.text.grammar import Rules

from .engine import Engine
from .partition import Partition

SEARCH_S = 0.1  # between two searches for better shares: predicting a step takes about a millisecond


class StepLanes(Protocol):
    """Steps that overlap: run.lanes.Lanes."""

    def start(self, lane: str, plan: StepPlan, share: float) -> None: ...

    def finish(self) -> tuple[str, StepResult]: ...


class Predict(Protocol):
    """Seconds of the next step of plans[stream] when stream 0 has this share: run.split_costs.SplitCosts.seconds."""

    def __call__(self, plans: Many[StepPlan], stream: int, share: float) -> float: ...


class StreamsEngine(Engine):
    """An Engine whose step() ends with the first of the steps that run. A chooser may make it one stream."""

    def __init__(
        self, scheduler: Scheduler, runner: StepRunner, lanes: StepLanes, partition: Partition, predict: Predict, *,
        facts: EngineFacts, clock: Clock, observer: StepObserver, close: Callable[[], None],
        kept: KeptState | None = None, rules: Rules | None = None, chooser: Chooser | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            scheduler, runner, facts=facts, clock=clock, observer=observer, close=close, kept=kept, rules=rules,
            chooser=chooser,
        )  # fmt: skip
        self.lanes, self.partition, self._predict = lanes, partition, predict
        self._flying: dict[str, tuple[StepPlan, float]] = {}  # plan and share, by stream
        self._searched_s, self._began_s = -SEARCH_S, 0.0

    def step(self) -> list[TokenEvent]:
        """Start what can be started, and wait for one to end."""
        self._start()
        self.is_stuck = not self._flying
        if self.is_stuck:
            return []
        name, result = self.lanes.finish()
        plan, _ = self._flying.pop(name)
        self.observer.on_step(plan, result)
        events = self.scheduler.commit(plan, result)
        if self.chooser is not None:
            self.chooser.heard(events, result.ended_s - self._began_s if name == ALL.name else 0.0)
        return events

    def _start(self) -> None:
        free = 1.0 - sum(share for _, share in self._flying.values())
        if free < 1e-9:
            return
        now = self._began_s = self.clock.now()
        made: dict[str, StepPlan] = {}
        for stream in self._streams(now):
            if stream.name not in self._flying and not (plan := self.scheduler.plan(now, stream)).is_empty:
                made[stream.name] = plan
        shares = self._shares(made, now)
        for name, plan in made.items():
            share = min(shares[name], free)
            free -= share
            self.lanes.start(name, plan, share)
            self._flying[name] = (plan, share)

    def _streams(self, now: float) -> tuple[Stream, ...]:
        """Whose steps may begin. Before all become one stream the long step that runs has to end; until then the short
        ones go on beside it."""
        if self.chooser is None:
            return STREAMS
        if MANY.name not in self._flying:  # else nothing could be done about it
            self.chooser.review(now)
        if self.chooser.way.is_split:
            return STREAMS
        if not self._flying:
            return (ALL,)
        return (ONE,) if MANY.name in self._flying else ()

    def _shares(self, made: dict[str, StepPlan], now: float) -> dict[str, float]:
        plans = {name: plan for name, (plan, _) in self._flying.items()} | made
        if len(plans) < len(STREAMS):  # of two that may run beside each other, one is there
            return dict.fromkeys(plans, 1.0)
        both = [plans[stream.name] for stream in STREAMS]
        if self.partition.is_open and now - self._searched_s >= SEARCH_S:
            self._searched_s = now
            free, held, cached = self.scheduler.memory.occupancy()
            used = held / max(1, free + held + cached)
            self.partition.decide(lambda stream, share: self._predict(both, stream, share), used)
        share = self.partition.share
        return dict(zip((stream.name for stream in STREAMS), (share, 1.0 - share), strict=True))

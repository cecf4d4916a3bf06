"""The engine: plan, submit, collect, observe, commit. It owns the loop and nothing else.

Built by engine/build.py; driven by engine/process.py (its own process) or directly by tests and the simulator.
"""

# size: one argument a part it is joined from

from __future__ import annotations

from collections.abc import Callable

from ridgeline.kit.clock import Clock
from ridgeline.schedule.choose import Chooser
from ridgeline.schedule.scheduler import Scheduler
from ridgeline.state.event import TokenEvent
from ridgeline.state.messages import MAP_CELLS, EngineFacts, Pulse
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.ports import KeptState, StepObserver, StepRunner
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import Parcel
from ridgeline.text.grammar import Rules


class Unobserved:
    """Watches nothing."""

    def on_step(self, plan: StepPlan, result: StepResult) -> None:
        pass

    def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None:
        pass


class Engine:
    """One model, one scheduler, one runner. Not thread-safe: one thread calls everything."""

    def __init__(
        self, scheduler: Scheduler, runner: StepRunner, *, facts: EngineFacts, clock: Clock,
        observer: StepObserver, close: Callable[[], None], kept: KeptState | None = None, rules: Rules | None = None,
        chooser: Chooser | None = None,
    ) -> None:  # fmt: skip
        """kept: bytes of kept state, for those who carry it between engines; None: nothing is computed here. rules:
        those of the scheduler, for whoever compiles grammars ahead. chooser: changes how steps are made, in between."""
        self.scheduler, self.runner, self.facts, self.clock, self.observer = scheduler, runner, facts, clock, observer
        self.kept, self.rules, self.chooser, self._close = kept, rules, chooser, close
        self.is_stuck = False  # the last plan was empty: only somebody outside can change that

    def add(
        self, request: Request, *, known: tuple[int, ...] = (), parcel: Parcel | None = None, hands_on: bool = False
    ) -> None:
        """Queue a request. UserError or CapacityError (nothing changed) when it cannot be done as asked."""
        request.check(self.facts.vocabulary, self.facts.context)
        self.scheduler.add(request, self.clock.now(), known=known, parcel=parcel, hands_on=hands_on)

    def cancel(self, request_id: str) -> TokenEvent | None:
        """End a request; its last event, or None when it is not here."""
        return self.scheduler.cancel(request_id, self.clock.now())

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> list[TokenEvent]:
        """Compute one step for everybody who runs."""
        began_s = self.clock.now()
        if self.chooser is not None:
            self.chooser.review(began_s)
        plan = self.scheduler.plan(began_s)
        self.is_stuck = plan.is_empty
        if plan.is_empty:
            return []
        result = self.runner.collect(self.runner.submit(plan))
        self.observer.on_step(plan, result)
        events = self.scheduler.commit(plan, result)
        if self.chooser is not None:
            self.chooser.heard(events, result.ended_s - began_s)
        return events

    def pulse(self) -> Pulse:
        """A sign of life, and how full it is."""
        free, held, cached = self.scheduler.memory.occupancy()
        return Pulse(
            self.clock.now(), self.scheduler.waiting, self.scheduler.running, free + held + cached, free, held, cached,
            self.scheduler.preemptions, self.scheduler.tokens_recomputed, self.scheduler.memory.picture(MAP_CELLS),
        )  # fmt: skip

    def check(self) -> None:
        """Raise InvariantError unless every block and sequence is accounted for."""
        self.scheduler.check()

    def close(self) -> None:
        """Give threads and memory back. The engine cannot be used afterwards."""
        self._close()

"""CostLanes: lanes that compute nothing, and take the estimated time on a virtual clock, each slowed by the other."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.kit.clock import VirtualClock
from ridgeline.state.plan import StepPlan, StepResult

from .cost_runner import CostRunner
from .split_costs import Other, SplitCosts


@dataclass(slots=True)
class _Flight:
    plan: StepPlan
    share: float
    started_s: float
    moving_s: float
    left: float = 1.0  # of the step


class CostLanes:
    """Stands where run.lanes.Lanes does. runner: for the answers, and what moving state takes."""

    def __init__(self, runner: CostRunner, costs: SplitCosts, clock: VirtualClock) -> None:
        self._runner, self._costs, self._clock = runner, costs, clock
        self._flights: dict[str, _Flight] = {}

    def start(self, lane: str, plan: StepPlan, share: float) -> None:
        moving_s = self._runner.moving_s(plan)
        self._clock.advance(moving_s)
        self._flights[lane] = _Flight(plan, share, self._clock.now(), moving_s)

    def finish(self) -> tuple[str, StepResult]:
        """The step that ends first, the clock at its end; of two that end at once, the one begun first."""
        seconds = {lane: self._seconds(lane) for lane in self._flights}
        first = min(self._flights, key=lambda lane: self._flights[lane].left * seconds[lane])
        passed = self._flights[first].left * seconds[first]
        self._clock.advance(passed)
        done = self._flights.pop(first)
        for lane, flight in self._flights.items():
            flight.left = max(0.0, flight.left - passed / max(seconds[lane], 1e-12))
        rows = tuple(self._runner.answer(entry) for entry in done.plan.entries)
        return first, StepResult(
            rows, done.started_s, self._clock.now(), transfer_ns=int(done.moving_s * 1e9), share=done.share
        )

    def _seconds(self, lane: str) -> float:
        flight = self._flights[lane]
        others = [other for name, other in self._flights.items() if name != lane]
        other = Other(others[0].plan, others[0].share) if others else None
        return self._costs.under(flight.plan, flight.share, other)

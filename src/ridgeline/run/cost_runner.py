"""CostRunner: a StepRunner that computes nothing and takes the estimated time on a virtual clock (binding "cost").

The scheduler cannot tell it from the real one, so whatever is predicted went through the engine that will serve it.
"""

from __future__ import annotations

from ridgeline.kit.clock import VirtualClock
from ridgeline.kit.errors import InvariantError
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.state.plan import RowResult, StepPlan, StepResult

from .estimate import Estimator
from .machine import Machine


def batch_shape(plan: StepPlan, windows: tuple[int, ...] = ()) -> BatchShape:
    """What a plan costs, in the few numbers that costs depend on."""
    rows = sum(len(entry.rows) for entry in plan.entries)
    return BatchShape.of(((entry.start, len(entry.tokens)) for entry in plan.entries), rows, windows)


class CostRunner:
    """Every chosen token is 0; only lengths matter."""

    def __init__(self, program: Program, machine: Machine, clock: VirtualClock) -> None:
        self._estimator, self._clock = Estimator(program, machine), clock
        self._windows = program.windows

    def submit(self, plan: StepPlan) -> StepResult:
        started = self._clock.now()
        self._clock.advance(float(self._estimator.step_seconds(batch_shape(plan, self._windows))))
        rows = tuple(tuple(RowResult(max(row.target, 0)) for row in entry.rows) for entry in plan.entries)
        return StepResult(rows, started, self._clock.now())

    def collect(self, ticket: object) -> StepResult:
        if not isinstance(ticket, StepResult):
            raise InvariantError("collect got a ticket that submit never gave")
        return ticket

"""CostRunner: a StepRunner that computes nothing and takes the estimated time on a virtual clock (binding "cost").

The scheduler cannot tell it from the real one, so whatever is predicted went through the engine that will serve it.
"""

from __future__ import annotations

from ridgeline.kit.clock import VirtualClock
from ridgeline.kit.errors import InvariantError
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.kv import Reach
from ridgeline.ops.program import Program
from ridgeline.ops.sample import uniform
from ridgeline.state.plan import Entry, RowResult, StepPlan, StepResult

from .estimate import Estimator
from .machine import Machine

WRONG = 1  # tokens here are 0 or 1: this minus a token is the other one


def batch_shape(plan: StepPlan, reaches: tuple[Reach, ...] = ()) -> BatchShape:
    """What a plan costs, in the few numbers that costs depend on."""
    rows = sum(len(entry.rows) for entry in plan.entries)
    return BatchShape.of(((entry.start, len(entry.tokens)) for entry in plan.entries), rows, reaches)


class CostRunner:
    """Every chosen token is 0; only lengths matter. acceptance: probability that a guessed token is the chosen one."""

    def __init__(self, program: Program, machine: Machine, clock: VirtualClock, *, acceptance: float = 0.0) -> None:
        self._estimator, self._clock = Estimator(program, machine), clock
        self._reaches = program.reaches
        self._acceptance = acceptance

    def submit(self, plan: StepPlan) -> StepResult:
        started = self._clock.now()
        self._clock.advance(float(self._estimator.step_seconds(batch_shape(plan, self._reaches))))
        rows = tuple(self._answer(entry) for entry in plan.entries)
        return StepResult(rows, started, self._clock.now())

    def _answer(self, entry: Entry) -> tuple[RowResult, ...]:
        """Scored tokens as given. A guess holds or not by a draw keyed like those of sampling, so runs repeat."""
        answers = []
        for row in entry.rows:
            token = max(row.target, 0)
            if row.target < 0 and row.offset + 1 < len(entry.tokens):
                is_right = uniform(entry.sequence, row.choice, row.position) < self._acceptance
                token = entry.tokens[row.offset + 1] if is_right else WRONG - entry.tokens[row.offset + 1]
            answers.append(RowResult(token))
        return tuple(answers)

    def collect(self, ticket: object) -> StepResult:
        if not isinstance(ticket, StepResult):
            raise InvariantError("collect got a ticket that submit never gave")
        return ticket

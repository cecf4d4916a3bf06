"""CostRunner: a StepRunner that computes nothing and takes the estimated time on a virtual clock (binding "cost").

The scheduler cannot tell it from the real one, so whatever is predicted went through the engine that will serve it.
"""

from __future__ import annotations

from ridgeline.kit.clock import VirtualClock
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.kv import Reach
from ridgeline.ops.program import Program
from ridgeline.ops.sample import uniform
from ridgeline.state.plan import Entry, RowResult, StepPlan, StepResult
from ridgeline.state.transfer import CopyState, LoadBlock, MoveSaved, MoveTokens, PackTokens, SaveBlock, Transfer

from .activations import DEFAULT
from .estimate import Estimator
from .machine import Machine

DISK_BYTES_PER_S = 1e9  # a common solid-state disk; an engine that runs measures its own
WRONG = 1  # tokens here are 0 or 1: this minus a token is the other one


def batch_shape(plan: StepPlan, reaches: tuple[Reach, ...] = ()) -> BatchShape:
    """What a plan costs, in the few numbers that costs depend on."""
    rows = sum(len(entry.rows) for entry in plan.entries)
    return BatchShape.of(((entry.start, len(entry.tokens)) for entry in plan.entries), rows, reaches)


def assumed_rate(machine: Machine, tier: str) -> float:
    """Bytes a second to and from a tier, before anything was measured: a copy in memory reads and writes."""
    return machine.read_bytes_per_s / 2 if tier == "host" else DISK_BYTES_PER_S


class CostRunner:
    """Every chosen token is 0; only lengths matter. acceptance: probability that a guessed token is the chosen one."""

    def __init__(
        self, program: Program, machine: Machine, clock: VirtualClock, *, acceptance: float = 0.0,
        activations: str = DEFAULT,
    ) -> None:  # fmt: skip
        self._estimator, self._clock = Estimator(program, machine, activations), clock
        self._reaches = program.reaches
        self._acceptance = acceptance
        self._tiers: dict[int, str] = {}  # of saved keys

    def submit(self, plan: StepPlan) -> StepResult:
        started = self._clock.now()
        moving_s = self.moving_s(plan)
        step_s = float(self._estimator.step_seconds(batch_shape(plan, self._reaches))) if plan.entries else 0.0
        self._clock.advance(moving_s + step_s)
        rows = tuple(self.answer(entry) for entry in plan.entries)
        return StepResult(rows, started, self._clock.now(), transfer_ns=int(moving_s * 1e9))

    def moving_s(self, plan: StepPlan) -> float:
        """Seconds that the plan's transfers take."""
        return sum(self._moving_s(transfer) for transfer in plan.transfers)

    def _moving_s(self, transfer: Transfer) -> float:
        """Bytes over the rate of whatever they come from or go to."""
        machine, groups = self._estimator.machine, self._estimator.program.kv_groups
        match transfer:
            case SaveBlock(_, _, key, tier):
                self._tiers[key] = tier
            case MoveSaved(key, tier):
                before = self._tiers.pop(key, "")
                if tier:
                    self._tiers[key] = tier
                tokens = BLOCK_TOKENS if tier else 0
                return sum(g.bytes_per_token for g in groups) * tokens / assumed_rate(machine, tier or before or "host")
            case LoadBlock(_, key, _):
                tier = self._tiers.get(key, "host")
            case _:
                tier = "host"
        tokens = len(transfer.sources) if isinstance(transfer, MoveTokens) else BLOCK_TOKENS
        if isinstance(transfer, PackTokens):
            tokens = transfer.heavy + transfer.recent
        if isinstance(transfer, CopyState):
            return 0.0
        return groups[transfer.group].bytes_per_token * tokens / assumed_rate(machine, tier)

    def answer(self, entry: Entry) -> tuple[RowResult, ...]:
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

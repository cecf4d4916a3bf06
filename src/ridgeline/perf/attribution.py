"""Who caused what in a step that mixes phases: `share: v1`.

Every line's roofline time goes to the phases by their tokens (by logit rows for the head and sampling; attention by
each phase's own counted time). A step's wall time follows the sum over lines. Weights are read once a step, and are
shared the same way. Lines measured in mixed steps follow their own line's share.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ridgeline.kit.cost import Cost
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.op import TOKENS, Line
from ridgeline.ops.program import Program
from ridgeline.run.activations import DEFAULT
from ridgeline.run.count import alike, weight_bytes
from ridgeline.run.estimate import Estimator, compute_kind, product_weights
from ridgeline.run.machine import Machine

from .account import StepTable
from .phases import PHASES
from .roofline import COMPUTE, KV_BANDWIDTH, WEIGHT_BANDWIDTH, roof_seconds

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
ROOFS = (COMPUTE, WEIGHT_BANDWIDTH, KV_BANDWIDTH)
MEMORY_SETS_PACE = 0.5  # from this share of a line's estimated time on


@dataclass(slots=True)
class PhaseWork:
    """cost: totals. roof_s: [ROOFS], roofline seconds by the ceiling that binds the line in that step."""

    shape: BatchShape  # arrays [steps]
    cost: Cost = field(default_factory=Cost)
    roof_s: Doubles = field(default_factory=lambda: np.zeros(len(ROOFS)))


@dataclass(slots=True)
class PartWork:
    """One operator over all layers and steps. measured_s, moved_bytes (weights, KV), flops by kind: [PHASES].

    by_phase, phase_roof_s: cost and roofline seconds [PHASES]. is_stored: it reads products' weights or KV, so that
    memory is one of its ceilings; other operators live in the caches. expected_s: [ROOFS], what the estimator gives
    it, by the ceiling that sets its pace with the kernels we have.
    """

    cost: Cost = field(default_factory=Cost)
    roof_s: float = 0.0
    by_phase: list[Cost] = field(default_factory=lambda: [Cost()] * len(PHASES))
    phase_roof_s: Doubles = field(default_factory=lambda: np.zeros(len(PHASES)))
    is_stored: bool = False
    expected_s: Doubles = field(default_factory=lambda: np.zeros(len(ROOFS)))
    measured_s: Doubles = field(default_factory=lambda: np.zeros(len(PHASES)))
    moved_bytes: Doubles = field(default_factory=lambda: np.zeros(len(PHASES)))
    flops: dict[str, Doubles] = field(default_factory=dict)


class Attribution:
    """Splits a StepTable's steps. `split`: [PHASES, steps], shares of each step's wall time; they sum to 1."""

    def __init__(self, table: StepTable, program: Program, machine: Machine, activations: str = DEFAULT) -> None:
        self.steps = len(table.step_times())
        self.phases = [PhaseWork(shape) for shape in _shapes(table, self.steps)]
        self.whole = replace(_sum([phase.shape for phase in self.phases]), experts=table.expert_counts())
        self.parts: dict[str, PartWork] = {}
        present = np.stack([phase.shape.tokens for phase in self.phases]) > 0  # [phases, steps]
        self.mixed_steps = int((present.sum(0) > 1).sum())
        self._mix = (present << np.arange(len(PHASES))[:, None]).sum(0)  # [steps], the bit set of phases
        self._machine, self._set_bytes = machine, weight_bytes(program) + self._kept_bytes(program)
        self._estimator = Estimator(program, machine, activations)
        caused_s = np.zeros((len(PHASES), self.steps))
        line_ns = table.lines()
        for line, indices in alike(program):
            measured_s = line_ns[:, indices].sum(1) * 1e-9 if line_ns.shape[1] else np.zeros(len(line_ns))
            caused_s += self._attribute(line, len(indices), measured_s)
        tokens = np.stack([phase.shape.tokens for phase in self.phases]).astype(float)
        caused_s = np.where(caused_s.sum(0) > 0, caused_s, tokens)
        self.split: Doubles = caused_s / np.maximum(caused_s.sum(0), 1e-300)

    def _kept_bytes(self, program: Program) -> float:
        """Of kept state that a step streams through the caches beside the weights, on average."""
        costs = [(line.cost(self.whole), len(indices)) for line, indices in alike(program) if line.op.kind == "attend"]
        return sum(count * float(self._dense(cost.kv_bytes).sum()) for cost, count in costs) / max(1, self.steps)

    def _attribute(self, line: Line, count: int, measured_s: Doubles) -> Doubles:
        """Add `count` lines of one sort to phases and parts; returns their roofline seconds [PHASES, steps]."""
        kind, cost = compute_kind(line), line.cost(self.whole)
        roof_s = count * self._dense(self._roof(cost, kind))
        shares = self._shares(line, kind)
        binding = self._binding(cost, kind)
        part = self.parts.setdefault(line.part, PartWork())
        flops = part.flops.setdefault(kind, np.zeros(len(PHASES)))
        for at, (phase, share) in enumerate(zip(self.phases, shares, strict=True)):
            own = self._summed(line.cost(phase.shape) if line.op.kind == "attend" else _scaled(cost, share), count)
            phase.cost = phase.cost + own
            phase.roof_s += np.bincount(binding, roof_s * share, minlength=len(ROOFS))
            flops[at] += own.flops
            part.moved_bytes[at] += own.weight_bytes + own.kv_bytes
            part.by_phase[at] = part.by_phase[at] + own
            part.phase_roof_s[at] += float((roof_s * share).sum())
            part.is_stored |= bool(product_weights(line)) or own.kv_bytes > 0
        part.cost = part.cost + self._summed(cost, count)
        part.roof_s += float(roof_s.sum())
        part.expected_s += self._expected(line, cost, count)
        part.measured_s += self._measured(measured_s, roof_s * shares)
        caused_s: Doubles = roof_s * shares
        return caused_s

    def _shares(self, line: Line, kind: str) -> Doubles:
        """[PHASES, steps], summing to 1 in every step where the line did anything."""
        if line.op.kind == "attend":
            amounts = [self._dense(self._roof(line.cost(phase.shape), kind)) for phase in self.phases]
        elif line.output.rows == TOKENS:
            amounts = [phase.shape.tokens for phase in self.phases]
        else:
            amounts = [phase.shape.logit_rows for phase in self.phases]
        stacked: Doubles = np.stack(amounts).astype(float)
        total: Doubles = stacked.sum(0)
        return stacked / np.where(total > 0, total, 1.0)

    def _measured(self, measured_s: Doubles, caused_s: Doubles) -> Doubles:
        """Seconds by set of phases [2^PHASES] -> seconds by phase [PHASES]."""
        result = np.zeros(len(PHASES))
        for mix in np.flatnonzero(measured_s):
            members = [phase for phase in range(len(PHASES)) if mix >> phase & 1]
            amounts = caused_s[:, self._mix == mix].sum(1)[members]
            shares = amounts / amounts.sum() if amounts.sum() > 0 else np.full(len(members), 1 / len(members))
            result[members] += measured_s[mix] * shares
        return result

    def _expected(self, line: Line, cost: Cost, count: int) -> Doubles:
        """[ROOFS] estimated seconds of `count` such lines over all steps, by what sets their pace: memory, where
        reading the stored bytes is the larger part of it."""
        seconds = self._dense(self._estimator.line_seconds(line, cost, self.whole))
        read_s = self._dense((cost.weight_bytes + cost.kv_bytes) / self._machine.bandwidth(self._set_bytes))
        is_kv = self._dense(np.greater(cost.kv_bytes, cost.weight_bytes))
        place = (read_s >= MEMORY_SETS_PACE * seconds) * (read_s > 0) * (1 + is_kv)
        expected_s: Doubles = np.bincount(place.astype(np.int64), count * seconds, minlength=len(ROOFS)).astype(float)
        return expected_s

    def _roof(self, cost: Cost, kind: str) -> Doubles:
        return np.asarray(roof_seconds(cost, kind, self._machine, self._set_bytes))

    def _binding(self, cost: Cost, kind: str) -> Integers:
        """[steps] index into ROOFS."""
        memory_s = (cost.weight_bytes + cost.kv_bytes) / self._machine.bandwidth(self._set_bytes)
        is_memory = self._dense(cost.flops / self._machine.peak(kind) < memory_s)
        is_kv = self._dense(np.greater(cost.kv_bytes, cost.weight_bytes))
        return np.asarray(is_memory * (1 + is_kv), np.int64)

    def _dense(self, value: object) -> Doubles:
        return np.broadcast_to(np.asarray(value, float), (self.steps,))

    def _summed(self, cost: Cost, count: int) -> Cost:
        """Over steps; Python numbers, so that nothing overflows or travels as NumPy."""
        values = (cost.flops, cost.weight_bytes, cost.kv_bytes, cost.activation_bytes)
        return Cost(*(count * float(self._dense(value).sum()) for value in values))


def _shapes(table: StepTable, steps: int) -> list[BatchShape]:
    """One BatchShape of arrays [steps] for every phase; zeros where a step had none of it."""
    rows = table.shape_rows()
    shapes = []
    for phase in range(len(PHASES)):
        mine = rows[rows[:, 1] == phase]
        dense = np.zeros((steps, rows.shape[1] - 2), np.int64)
        dense[mine[:, 0]] = mine[:, 2:]
        tokens, logit_rows, sequences, pairs, kv_tokens, *rest = dense.T
        reached = {reach: (rest[2 * i], rest[2 * i + 1]) for i, reach in enumerate(table.reaches)}
        shapes.append(BatchShape(tokens, logit_rows, sequences, pairs, kv_tokens, reached))
    return shapes


def _sum(shapes: list[BatchShape]) -> BatchShape:
    names = ("tokens", "logit_rows", "sequences", "pairs", "kv_tokens")
    reached = {
        reach: (sum(s.reached[reach][0] for s in shapes), sum(s.reached[reach][1] for s in shapes))
        for reach in shapes[0].reached
    }
    sums = {name: sum(getattr(shape, name) for shape in shapes) for name in names}
    return BatchShape(**sums, reached=reached)


def _scaled(cost: Cost, share: Doubles) -> Cost:
    return Cost(cost.flops * share, cost.weight_bytes * share, cost.kv_bytes * share, cost.activation_bytes * share)

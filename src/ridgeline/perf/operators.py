"""Counting a model that need not be here: work, bytes and estimated time by operator and phase (A3, A4).

Evaluates the Program's own costs on descriptors; nothing is loaded or run.
"""

from __future__ import annotations

import msgspec
import numpy as np

from ridgeline.kit.cost import Cost
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.run.count import alike, weight_bytes
from ridgeline.run.estimate import Estimator, compute_kind
from ridgeline.run.machine import Machine

from .roofline import intensity, roof_name


class OperatorRow(msgspec.Struct, frozen=True):
    """One operator, summed over its lines. intensity: FLOPs per byte of weights and KV, None where none is read.

    roof: the ceiling it meets on this machine. predicted_s: estimated, from counts and ceilings.
    """

    phase: str
    name: str
    lines: int
    flops: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    intensity: float | None
    roof: str
    predicted_s: float


class PhaseCount(msgspec.Struct, frozen=True):
    """One step of a phase. overhead_s: barriers and host, which no operator has. floor_s: reading its bytes alone."""

    name: str
    tokens: int
    rows: tuple[OperatorRow, ...]
    flops: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    intensity: float
    predicted_s: float
    overhead_s: float
    floor_s: float
    compute_s: float


def prefill_shape(program: Program, batch: int, prompt: int) -> BatchShape:
    """All prompts in one step; one token is chosen for each."""
    return BatchShape.of([(0, prompt)] * batch, batch, program.reaches)


def decode_shape(program: Program, batch: int, context: int) -> BatchShape:
    """One token each, after `context` kept ones."""
    return BatchShape.of([(context, 1)] * batch, batch, program.reaches)


def count_phase(name: str, program: Program, machine: Machine, shape: BatchShape) -> PhaseCount:
    """Every operator of one step."""
    estimator, set_bytes = Estimator(program, machine), weight_bytes(program)
    costs: dict[str, Cost] = {}
    lines: dict[str, int] = {}
    seconds: dict[str, float] = {}
    kinds: dict[str, str] = {}
    compute_s = 0.0
    for line, indices in alike(program):
        part, count, cost = line.part, len(indices), line.cost(shape)
        costs[part] = costs.get(part, Cost()) + _times(cost, count)
        lines[part] = lines.get(part, 0) + count
        seconds[part] = seconds.get(part, 0.0) + count * float(estimator.line_seconds(line, cost, shape))
        kinds[part] = compute_kind(line)
        compute_s += count * cost.flops / machine.peak(kinds[part])
    rows = tuple(
        OperatorRow(
            name, part, lines[part], float(cost.flops), float(cost.weight_bytes), float(cost.kv_bytes),
            float(cost.activation_bytes), intensity(cost), roof_name(cost, kinds[part], machine, set_bytes),
            seconds[part],
        )
        for part, cost in costs.items()
    )  # fmt: skip
    whole = sum(costs.values(), Cost())
    predicted_s = float(np.asarray(estimator.step_seconds(shape)))
    return PhaseCount(
        name, int(shape.tokens), rows, float(whole.flops), float(whole.weight_bytes), float(whole.kv_bytes),
        float(whole.activation_bytes), intensity(whole) or 0.0, predicted_s, predicted_s - sum(seconds.values()),
        float(whole.weight_bytes + whole.kv_bytes) / machine.bandwidth(set_bytes), compute_s,
    )  # fmt: skip


def _times(cost: Cost, count: int) -> Cost:
    return Cost(count * cost.flops, count * cost.weight_bytes, count * cost.kv_bytes, count * cost.activation_bytes)

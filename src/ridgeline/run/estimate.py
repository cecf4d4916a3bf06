"""How long a step takes, from the counted costs and this machine's measured ceilings. The one owner of that number.

Everything that predicts asks here: `predict`, the ladder's second column, the simulator's runner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ridgeline.kernels.packing import reads_integers
from ridgeline.kit.cost import Cost
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.op import Line
from ridgeline.ops.program import Program

from .count import weight_bytes
from .machine import Machine


def compute_kind(line: Line) -> str:
    """Which arithmetic peak bounds a line: "int8" for integer linears, else "f32"."""
    parts = line.attributes.get("parts", 0)
    is_integer = any(reads_integers(weight.format) for weight in line.weights[:parts])
    return "int8" if is_integer else "f32"


class Estimator:
    """Seconds of steps of one Program on one machine; evaluates arrays of batch shapes at once."""

    def __init__(self, program: Program, machine: Machine) -> None:
        self.program, self.machine = program, machine
        self._bandwidth = machine.bandwidth(weight_bytes(program))  # weights are what a step streams
        self._kinds = [compute_kind(line) for line in program]

    def line_seconds(self, line: Line, cost: Cost) -> Any:
        """Roofline time: the slower of arithmetic at its attainable peak and bytes at the attainable bandwidth.

        Activations stay in the caches between lines, so only stored bytes (weights, KV) count against memory.
        """
        kind = self._kinds[line.index]
        peak = self.machine.attainable(line.op.kind, kind)
        bandwidth = self._bandwidth * self.machine.efficiency.get(f"{line.op.kind} {kind} bytes", 1.0)
        return np.maximum(cost.flops / peak, (cost.weight_bytes + cost.kv_bytes) / bandwidth)

    def by_part(self, batch: BatchShape) -> Mapping[str, Any]:
        """Seconds by operator name, summed over layers."""
        seconds: dict[str, Any] = {}
        for line in self.program:
            seconds[line.part] = seconds.get(line.part, 0.0) + self.line_seconds(line, line.cost(batch))
        return seconds

    def step_seconds(self, batch: BatchShape) -> Any:
        """One step: lines, plus a barrier each, plus the host's share between two native calls."""
        overhead = len(self.program.lines) * self.machine.barrier_s + self.machine.host_s
        return sum(self.by_part(batch).values()) + overhead


def step_seconds(program: Program, batch: BatchShape, machine: Machine) -> Any:
    """Seconds of one step; build an Estimator for many."""
    return Estimator(program, machine).step_seconds(batch)

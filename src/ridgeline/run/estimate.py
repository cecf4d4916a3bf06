"""How long a step takes, from the counted costs and this machine's measured ceilings. The one owner of that number.

Everything that predicts asks here: `predict`, the ladder's second column, the simulator's runner, guessing ahead. With
calibrated rates (rates.py) a line's time follows its rows; without, it is the roofline's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ridgeline.kernels.packing import reads_integers
from ridgeline.kit.cost import Cost
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.experts import distinct
from ridgeline.ops.op import Line
from ridgeline.ops.program import Program
from ridgeline.ops.protocols import Weight

from .activations import DEFAULT
from .count import alike, weight_bytes
from .machine import Machine
from .rates import LineRate, product_rate

PRODUCTS = ("linear", "head", "experts")
FURTHER = "attend further"  # rate of attention's rows beyond a sequence's first
# Without a calibration, what native products reach of their peak: int8 dots by how activations are read, f32; what
# attention does of many rows; and at which share of the read bandwidth everything else takes its activations.
TYPICAL = {"int16": 0.25, "auto": 0.38, "int8": 0.45, "f32": 0.65, "attend": 0.55, "rest": 0.5}


def compute_kind(line: Line) -> str:
    """Which arithmetic peak bounds a line: "int8" for integer linears, else "f32"."""
    return "int8" if any(reads_integers(weight.format) for weight in product_weights(line)) else "f32"


def product_weights(line: Line) -> tuple[Weight, ...]:
    """The matrices that a line multiplies with; none for other operators."""
    return line.weights[: line.attributes.get("parts", 0)]


def rate_key(kind: str, program: Program) -> str:
    """Operators around integer products round their rows for them, so they have rates of their own."""
    return f"{kind} int8" if any(compute_kind(line) == "int8" for line in program) else f"{kind} f32"


class Estimator:
    """Seconds of steps of one Program on one machine; evaluates arrays of batch shapes at once.

    activations: how integer products read them (run/activations.py).
    """

    def __init__(self, program: Program, machine: Machine, activations: str = DEFAULT) -> None:
        self.program, self.machine = program, machine
        self._activations = activations
        self._set_bytes = weight_bytes(program)
        self._bandwidth = machine.bandwidth(self._set_bytes)  # weights are what a step streams
        self._sorts = [(line, len(indices)) for line, indices in alike(program)]
        self._layers = sum(count for line, count in self._sorts if line.op.kind == "attend")
        speeds = sorted((read.set_bytes, read.bytes_per_s) for read in machine.reads if read.threads == machine.threads)
        self._speeds = np.log([size for size, _ in speeds]), np.array([speed for _, speed in speeds])
        self._kinds = [compute_kind(line) for line in program]
        self._products = {line.index: self._rates_of(line) for line, _ in self._sorts if line.op.kind in PRODUCTS}
        self._others = {
            line.index: (machine.rates[key], _row_bytes(line))
            for line, _ in self._sorts
            if (key := rate_key(line.op.kind, program)) in machine.rates
        }

    def line_seconds(self, line: Line, cost: Cost, batch: BatchShape) -> Any:
        """One line of the first of each sort (count.alike). cost: what line.cost says of the batch."""
        if self._products.get(line.index):
            return self._product_seconds(line, cost, batch)
        if line.index not in self._others:
            return self._roofline_seconds(line, cost) + (line.output.count(batch) > 0) * self.machine.barrier_s
        if line.op.kind == "attend":
            return self.fixed_seconds(line, batch) + sum(self._attend_seconds(line, cost))
        rate, unit = self._others[line.index]
        return unit * rate.at(line.output.count(batch))

    def fixed_seconds(self, line: Line, batch: BatchShape) -> Any:
        """What calibrated attention takes by sequences, and by their further rows, before anything is read or
        multiplied."""
        if line.index not in self._others:
            return 0.0
        rate, unit = self._others[line.index]
        further = self.machine.rates.get(rate_key(FURTHER, self.program))
        seconds = unit * rate.at(batch.sequences)
        return seconds if further is None else seconds + unit * further.at(batch.tokens - batch.sequences)

    def by_part(self, batch: BatchShape) -> Mapping[str, Any]:
        """Seconds by operator name, summed over layers."""
        seconds: dict[str, Any] = {}
        for line, count in self._sorts:
            one = self.line_seconds(line, line.cost(batch), batch)
            seconds[line.part] = seconds.get(line.part, 0.0) + count * one
        return seconds

    def step_seconds(self, batch: BatchShape) -> Any:
        """One step: lines, plus the host's share between two native calls."""
        return sum(self.by_part(batch).values()) + self.machine.host_s

    def demands(self, batch: BatchShape) -> tuple[Any, Any, Any]:
        """[lines] seconds of one step by what takes them, all layers together: arithmetic at its attainable peak, bytes
        at the attainable bandwidth (the two overlap), and what both leave unexplained of line_seconds."""
        found = []
        for line, count in self._sorts:
            cost = line.cost(batch)
            kind = self._kinds[line.index]
            total = float(self.line_seconds(line, cost, batch))
            peak = self.machine.attainable(line.op.kind, kind) * self._typical(line, kind)
            arithmetic = min(total, float(cost.flops) / peak)
            reading = min(total, float(cost.weight_bytes + cost.kv_bytes) / self._bandwidth)
            found.append((count * arithmetic, count * reading, count * (total - max(arithmetic, reading))))
        columns = np.array(found, float).reshape(-1, 3)
        return columns[:, 0], columns[:, 1], columns[:, 2]

    def _product_seconds(self, line: Line, cost: Cost, batch: BatchShape) -> Any:
        """By weight: a line's matrices may be stored differently. Experts: rows shared evenly by those that run."""
        rows, share = line.output.count(batch), np.asarray(1.0)
        if line.op.kind == "experts":
            experts, chosen = line.attributes["routing"].experts, line.attributes["routing"].chosen
            ran = np.maximum(distinct(batch, experts, chosen), 1e-9)
            rows, share = chosen * rows / ran, ran / experts
        total = 0.0
        for nbytes, elements, rate in self._products[line.index]:
            total = total + rate.weight_seconds(share * nbytes, share * elements, rows, self._bandwidth)
        return total

    def _roofline_seconds(self, line: Line, cost: Cost) -> Any:
        """The slower of arithmetic at its attainable peak and bytes at the attainable bandwidth.

        Activations stay in the caches between lines, so only stored bytes (weights, KV) count against memory.
        """
        kind = self._kinds[line.index]
        if line.op.kind == "attend":
            return np.maximum(*self._attend_seconds(line, cost))
        peak = self.machine.attainable(line.op.kind, kind) * self._typical(line, kind)
        bytes_s: Any = (cost.weight_bytes + cost.kv_bytes) / self._bandwidth
        if self._is_typical and line.op.kind not in PRODUCTS:
            bytes_s = bytes_s + cost.activation_bytes / (TYPICAL["rest"] * self._bandwidth)
        return np.maximum(cost.flops / peak, bytes_s)

    def _attend_seconds(self, line: Line, cost: Cost) -> tuple[Any, Any]:
        """(arithmetic, reading). Calibrated kernels take both, one after the other: only one of many rows hides its
        reading."""
        kind = self._kinds[line.index]
        peak = self.machine.attainable(line.op.kind, kind) * self._typical(line, kind)
        # Kept state is streamed as well as weights: where those are few it decides which cache holds everything.
        bandwidth = np.interp(np.log(self._set_bytes + self._layers * cost.kv_bytes + 1.0), *self._speeds)
        bandwidth = bandwidth * self.machine.efficiency.get(f"{line.op.kind} {kind} bytes", 1.0)
        return cost.flops / peak, cost.kv_bytes / bandwidth

    @property
    def _is_typical(self) -> bool:
        """Our kernels, and not calibrated; other machines, and others' rates, are as they are."""
        return self.machine.source == "native" and not self.machine.efficiency

    def _typical(self, line: Line, kind: str) -> float:
        if not self._is_typical or line.op.kind not in (*PRODUCTS, "attend"):
            return 1.0
        if line.op.kind == "attend":
            return TYPICAL["attend"]
        return TYPICAL[self._activations.partition(":")[0] if kind == "int8" else kind]

    def _rates_of(self, line: Line) -> list[tuple[int, int, LineRate]]:
        """(bytes, elements, rate) of each of a product's matrices; empty when one has no rate."""
        found = []
        for weight in product_weights(line):
            elements = weight.rows * weight.columns
            rate = product_rate(
                self.machine.rates, weight.format.name, 8 * weight.nbytes / elements, reads_integers(weight.format),
                self._activations,
            )  # fmt: skip
            if rate is None:
                return []
            found.append((weight.nbytes, elements, rate))
        return found


def _row_bytes(line: Line) -> float:
    """Activation bytes of one row."""
    return float(line.cost(BatchShape.of([(0, 1)], 1, _reaches(line))).activation_bytes)


def _reaches(line: Line) -> tuple[Any, ...]:
    reach = line.attributes.get("reach")
    return () if reach is None or reach.is_everything else (reach,)


def step_seconds(program: Program, batch: BatchShape, machine: Machine) -> Any:
    """Seconds of one step; build an Estimator for many."""
    return Estimator(program, machine).step_seconds(batch)

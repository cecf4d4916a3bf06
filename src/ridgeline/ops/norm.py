"""norm: RMS norm over the last axis."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, x: Any) -> Any:  # [rows, width] -> same
    gain = step.tensor(line.weights[0])[0]
    return x * (x.pow(2).mean(-1, keepdim=True) + line.attributes["eps"]).rsqrt() * gain


def cost(batch: BatchShape, line: Line) -> Cost:
    """Square, sum, scale, gain: 4 FLOPs an element."""
    elements = line.output.width * line.output.count(batch)
    return Cost(flops=4 * elements, weight_bytes=line.weights[0].nbytes, activation_bytes=8 * elements)


NORM = Op("norm", meaning, cost, error={"": 1e-5})

"""add: the residual sum."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, x: Any, y: Any) -> Any:
    return x + y


def cost(batch: BatchShape, line: Line) -> Cost:
    elements = line.output.width * line.output.count(batch)
    return Cost(flops=elements, activation_bytes=12 * elements)


ADD = Op("add", meaning, cost, error={"": 1e-6})

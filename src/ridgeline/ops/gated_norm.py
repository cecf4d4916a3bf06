"""gated_norm: RMS norm, group by group, of y * silu(gate); the gate is the first part of a wider row (K11)."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, y: Any, wide: Any) -> Any:
    """[rows, inner] and [rows, shape.wide] (gate first) -> [rows, inner]."""
    import torch  # noqa: PLC0415  heavy and optional

    shape = line.attributes["shape"]
    x = y * torch.nn.functional.silu(wide[:, : shape.inner])
    parts = x.reshape(len(y), shape.groups, -1)
    factor = (parts.pow(2).mean(-1, keepdim=True) + line.attributes["eps"]).rsqrt()
    return (parts * factor).reshape(y.shape) * step.tensor(line.weights[0]).reshape(-1)


def cost(batch: BatchShape, line: Line) -> Cost:
    """6 FLOPs an element for the gate, 4 for the norm."""
    elements = line.output.width * line.output.count(batch)
    return Cost(flops=10 * elements, weight_bytes=line.weights[0].nbytes, activation_bytes=12 * elements)


GATED_NORM = Op("gated_norm", meaning, cost, error={"": 1e-5})

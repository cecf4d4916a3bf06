"""activation: function(gate) * up, the gated half of an MLP."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, gate_up: Any) -> Any:  # [rows, 2 width] -> [rows, width]
    from torch.nn import functional  # noqa: PLC0415  heavy and optional

    gate, up = gate_up.chunk(2, -1)
    if line.attributes["function"] == "silu":
        return functional.silu(gate) * up
    return functional.gelu(gate, approximate="tanh") * up


def cost(batch: BatchShape, line: Line) -> Cost:
    """5 FLOPs an element (exponential counted as one)."""
    elements = line.output.width * line.output.count(batch)
    return Cost(flops=5 * elements, activation_bytes=12 * elements)


ACTIVATION = Op("activation", meaning, cost, error={"": 1e-5})

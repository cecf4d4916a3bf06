"""combine: each token's expert outputs, weighted and summed in the order they were chosen (a fixed order: promise 1).

With a shared expert: + its output, times sigmoid of a gate where the family has one (Qwen2-MoE) (K8).
"""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, done: Any, routing: Any, *shared: Any) -> Any:
    """done: [tokens, chosen width]; shared: [tokens, width] and its gate's logit [tokens, 1] -> [tokens, width]."""
    chosen = line.attributes["routing"].chosen
    rows = done.reshape(len(done) * chosen, -1)[routing[:, 2 * chosen :].long()]  # [tokens, chosen, width]
    out = routing[:, chosen, None] * rows[:, 0]
    for choice in range(1, chosen):
        out = out + routing[:, chosen + choice, None] * rows[:, choice]
    if len(shared) == 2:
        return out + shared[1].sigmoid() * shared[0]
    return out + shared[0] if shared else out


def cost(batch: BatchShape, line: Line) -> Cost:
    """2 FLOPs an element of every expert's output and of the shared one's."""
    rows, widths = line.output.count(batch), sum(value.width for value in line.inputs)
    summed = line.inputs[0].width + (line.output.width if len(line.inputs) > 2 else 0)
    return Cost(flops=2 * rows * summed, activation_bytes=4 * rows * (widths + line.output.width))


COMBINE = Op("combine", meaning, cost, error={"": 1e-5})

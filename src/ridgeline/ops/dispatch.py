"""dispatch: copies each token's row to its places among the rows sorted by expert (K8); combine.py is the way back."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, x: Any, routing: Any) -> Any:  # [tokens, width] -> [tokens, chosen width]
    import torch  # noqa: PLC0415  heavy and optional

    chosen = line.attributes["routing"].chosen
    rows = torch.empty(len(x) * chosen, x.shape[1], dtype=x.dtype, device=x.device)
    rows[routing[:, 2 * chosen :].reshape(-1).long()] = x.repeat_interleave(chosen, 0)
    return rows.reshape(len(x), -1)  # tokens * chosen rows; the shape only says how many


def cost(batch: BatchShape, line: Line) -> Cost:
    """Only moves."""
    widths = sum(value.width for value in line.inputs) + line.output.width
    return Cost(activation_bytes=4 * line.output.count(batch) * widths)


DISPATCH = Op("dispatch", meaning, cost, error={"": 0.0})

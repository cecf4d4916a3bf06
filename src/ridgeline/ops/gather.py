"""gather: keep only the rows whose logits are wanted."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, x: Any) -> Any:  # [tokens, width] -> [logit_rows, width]
    return x[step.logit_tokens]


def cost(batch: BatchShape, line: Line) -> Cost:
    return Cost(activation_bytes=8 * line.output.width * batch.logit_rows)


GATHER = Op("gather", meaning, cost, error={"": 0.0})

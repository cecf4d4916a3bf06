"""embed: token ids -> rows of the embedding table."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line) -> Any:  # -> [tokens, width]
    return step.tensor(line.weights[0])[step.token_ids] * line.attributes["scale"]


def cost(batch: BatchShape, line: Line) -> Cost:
    """One stored row per token (an upper bound when ids repeat)."""
    weight = line.weights[0]
    row_bytes = weight.format.nbytes(1, weight.columns)
    return Cost(weight_bytes=row_bytes * batch.tokens, activation_bytes=4 * line.output.width * batch.tokens)


EMBED = Op("embed", meaning, cost, error={"": 1e-6})

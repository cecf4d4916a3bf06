"""linear, and head (the same on logit rows): matrices side by side on one input."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, x: Any) -> Any:  # [rows, columns] -> [rows, Σ weight rows]
    import torch  # noqa: PLC0415  heavy and optional

    parts = line.attributes["parts"]
    biases = iter(line.weights[parts:])
    outputs = []
    for weight, biased in zip(line.weights[:parts], line.attributes["biased"], strict=True):
        y = x @ step.tensor(weight).T
        outputs.append(y + step.tensor(next(biases))[0] if biased else y)
    return torch.cat(outputs, -1)


def cost(batch: BatchShape, line: Line) -> Cost:
    """2 FLOPs a weight and row, 1 a bias and row; each weight read once as stored. A step without rows reads none."""
    rows = line.output.count(batch)
    parts = line.attributes["parts"]
    read = (rows > 0) * 1
    multiplies = sum(2 * weight.rows * weight.columns for weight in line.weights[:parts])
    bias_adds = sum(bias.columns for bias in line.weights[parts:])
    return Cost(
        flops=rows * (multiplies + bias_adds),
        weight_bytes=read * sum(weight.nbytes for weight in line.weights),
        activation_bytes=4 * rows * (line.inputs[0].width + line.output.width),
    )


# Integer formats round activations to 15 bits per group of 32: 1/32512 of the group's largest element per product.
# With 8 bits (run/activations.py) they differ by more; that quality is measured apart.
ERRORS = {"": 2e-5} | dict.fromkeys(("q8_0", "q4_1", "q4_0", "q5_0", "q4_k", "q6_k", "int8", "int4"), 5e-4)
LINEAR = Op("linear", meaning, cost, error=ERRORS)
HEAD = Op("head", meaning, cost, error=ERRORS)

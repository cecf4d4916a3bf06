"""experts: the gated MLP of every expert over the rows sent to it (grouped GEMM; empty experts cost nothing) (K8).

Its weights are stacks: the rows of all experts' matrices one below the other. Each distinct expert is read once a step.
"""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost, Number

from .batch import BatchShape
from .linear import ERRORS as LINEAR_ERRORS
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, sent: Any, routing: Any) -> Any:  # [tokens, chosen width] -> same
    import torch  # noqa: PLC0415  heavy and optional
    from torch.nn import functional  # noqa: PLC0415

    experts, chosen = line.attributes["routing"].experts, line.attributes["routing"].chosen
    gate, up, down = (step.tensor(w).reshape(experts, -1, w.columns) for w in line.weights)
    counts = routing[:, :chosen].reshape(-1).long().bincount(minlength=experts).tolist()
    outputs = []
    for expert, rows in enumerate(sent.reshape(len(sent) * chosen, -1).split(counts)):
        gated = rows @ gate[expert].T
        if line.attributes["function"] == "silu":
            gated = functional.silu(gated)
        else:
            gated = functional.gelu(gated, approximate="tanh")
        outputs.append((gated * (rows @ up[expert].T)) @ down[expert].T)
    return torch.cat(outputs).reshape(sent.shape)


def distinct(batch: BatchShape, experts: int, chosen: int) -> Number:
    """Experts that run: as counted when the batch knows, else what even routing leads one to expect (A16)."""
    if batch.experts is not None:
        return batch.experts
    return experts * (1 - (1 - chosen / experts) ** batch.tokens)


def cost(batch: BatchShape, line: Line) -> Cost:
    """2 FLOPs a weight and row sent, 5 a gated element; the weights of distinct experts once."""
    experts, chosen = line.attributes["routing"].experts, line.attributes["routing"].chosen
    rows = chosen * line.output.count(batch)
    hidden = line.weights[0].rows // experts
    elements = sum(weight.rows * weight.columns for weight in line.weights) // experts
    width = line.output.width // chosen
    return Cost(
        flops=rows * (2 * elements + 5 * hidden),
        weight_bytes=distinct(batch, experts, chosen) / experts * sum(weight.nbytes for weight in line.weights),
        activation_bytes=4 * rows * (2 * width + 6 * hidden),
    )


# Two linears in a row.
EXPERTS = Op("experts", meaning, cost, error={name: 2 * error for name, error in LINEAR_ERRORS.items()})

"""route: router logits -> which experts each token goes to, with what weight, and where among all rows sent (K8).

Owns the layout of a routing row: [ids | weights | places], `chosen` f32 numbers each. A place is the row's number when
all (token, choice) pairs are sorted by expert, stably; whole numbers below 2^24 are exact in f32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView

SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True, slots=True)
class Routing:
    """How a token's experts are chosen. Scores: softmax or sigmoid of the logits, in f32.

    The `chosen` largest win (of scores plus a correction bias where the model has one; ties: the smaller id); a chosen
    expert's weight is its score, divided by the sum of the chosen ones when `renormalise`, times `scale`. groups > 1:
    only experts in the `groups_kept` groups whose two best sum highest can be chosen (DeepSeek-V3).
    """

    experts: int
    chosen: int
    score: str = "softmax"
    renormalise: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1


def choose(logits: Any, bias: Any, routing: Routing) -> tuple[Any, Any]:
    """[tokens, experts] -> (ids [tokens, chosen] int64, weights [tokens, chosen]), the best first."""
    scores = logits.softmax(-1) if routing.score == "softmax" else logits.sigmoid()
    wanted = logits if routing.score == "softmax" and bias is None else scores  # finer than rounded scores
    if bias is not None:
        wanted = wanted + bias
    if routing.groups > 1:
        members = wanted.reshape(len(wanted), routing.groups, -1)
        best = members.topk(min(2, members.shape[-1]), -1).values.sum(-1)
        order = best.sort(dim=-1, descending=True, stable=True).indices
        members = members.clone()
        members.scatter_(1, order[:, routing.groups_kept :, None].expand(-1, -1, members.shape[-1]), float("-inf"))
        wanted = members.reshape(wanted.shape)
    ids = wanted.sort(dim=-1, descending=True, stable=True).indices[:, : routing.chosen]
    weights = scores.gather(1, ids)
    if routing.renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)  # sigmoids may all be 0
    return ids, weights * routing.scale


def meaning(step: StepView, line: Line, logits: Any) -> Any:  # [tokens, experts] -> [tokens, 3 chosen]
    import torch  # noqa: PLC0415  heavy and optional

    routing = line.attributes["routing"]
    bias = step.tensor(line.weights[0])[0] if line.weights else None
    ids, weights = choose(logits, bias, routing)
    order = ids.reshape(-1).sort(stable=True).indices
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return torch.cat([ids.to(logits.dtype), weights, places.reshape(ids.shape).to(logits.dtype)], -1)


def cost(batch: BatchShape, line: Line) -> Cost:
    """5 FLOPs a score, and a comparison for each score and choice."""
    routing, rows = line.attributes["routing"], line.output.count(batch)
    return Cost(
        flops=rows * routing.experts * (5 + routing.chosen),
        weight_bytes=(rows > 0) * sum(weight.nbytes for weight in line.weights),
        activation_bytes=4 * rows * (routing.experts + 3 * routing.chosen),
    )


CASES = (
    {"routing": Routing(8, 2)},  # Mixtral, Qwen3-MoE
    {"routing": Routing(60, 4, renormalise=False)},  # Qwen2-MoE; with a shared expert in combine
    {"routing": Routing(24, 5, score="sigmoid"), "bias": True},
    {"routing": Routing(64, 6, score="sigmoid", scale=2.5, groups=8, groups_kept=4), "bias": True},  # DeepSeek-V3
)
ROUTE = Op("route", meaning, cost, error={"": 1e-5}, cases=CASES)

"""head_norm: RMS norm of every q head and every k head inside a qkv row, each with its gain (qk-norm)."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, qkv: Any) -> Any:  # [tokens, (heads + 2 kv_heads) head_dim] -> same
    import torch  # noqa: PLC0415  heavy and optional

    heads, kv_heads, dim = (line.attributes[k] for k in ("heads", "kv_heads", "head_dim"))
    q, k, v = qkv.split((heads * dim, kv_heads * dim, kv_heads * dim), -1)
    normed = []
    for part, gain in zip((q, k), line.weights, strict=True):
        x = part.reshape(len(qkv), -1, dim)
        factor = (x.pow(2).mean(-1, keepdim=True) + line.attributes["eps"]).rsqrt()
        normed.append((x * factor * step.tensor(gain)[0]).reshape(part.shape))
    return torch.cat([*normed, v], -1)


def cost(batch: BatchShape, line: Line) -> Cost:
    """4 FLOPs an element of q and k, as `norm`; v is not touched."""
    heads = line.attributes["heads"] + line.attributes["kv_heads"]
    elements = heads * line.attributes["head_dim"] * line.output.count(batch)
    gains = sum(gain.nbytes for gain in line.weights)
    return Cost(flops=4 * elements, weight_bytes=gains, activation_bytes=8 * elements)


HEAD_NORM = Op("head_norm", meaning, cost, error={"": 1e-5})

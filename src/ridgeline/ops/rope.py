"""rope: rotary position embedding of the q and k heads inside a qkv row."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, qkv: Any) -> Any:  # [tokens, (heads + 2 kv_heads) head_dim] -> same
    import torch  # noqa: PLC0415  heavy and optional

    heads, kv_heads, dim = (line.attributes[k] for k in ("heads", "kv_heads", "head_dim"))
    rope = line.attributes["rope"]
    cos_table, sin_table = rope.tables()
    cos = torch.from_numpy(cos_table).to(qkv.device)[step.positions][:, None, :]
    sin = torch.from_numpy(sin_table).to(qkv.device)[step.positions][:, None, :]
    turned = qkv[:, : (heads + kv_heads) * dim].reshape(len(qkv), heads + kv_heads, dim).clone()
    if rope.interleaved:  # pairs (0, 1), (2, 3), ...: GGUF files of the llama family
        a, b = turned[..., 0 : rope.dim : 2].clone(), turned[..., 1 : rope.dim : 2].clone()
        turned[..., 0 : rope.dim : 2], turned[..., 1 : rope.dim : 2] = a * cos - b * sin, b * cos + a * sin
    else:  # pairs (i, i + dim/2)
        half = rope.dim // 2
        a, b = turned[..., :half].clone(), turned[..., half : rope.dim].clone()
        turned[..., :half], turned[..., half : rope.dim] = a * cos - b * sin, b * cos + a * sin
    return torch.cat([turned.reshape(len(qkv), -1), qkv[:, (heads + kv_heads) * dim :]], -1)


def cost(batch: BatchShape, line: Line) -> Cost:
    """6 FLOPs a rotated pair; cos and sin read per token."""
    rope = line.attributes["rope"]
    heads = line.attributes["heads"] + line.attributes["kv_heads"]
    rotated = heads * rope.dim * batch.tokens
    return Cost(flops=3 * rotated, activation_bytes=8 * rotated + 4 * rope.dim * batch.tokens)


ROPE = Op("rope", meaning, cost, error={"": 1e-5})

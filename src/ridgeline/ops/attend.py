"""attend: keep this step's k and v, then causal attention over everything kept (C1, C3, D5)."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, qkv: Any) -> Any:  # [tokens, (heads + 2 kv_heads) dim] -> [tokens, heads dim]
    import torch  # noqa: PLC0415  heavy and optional

    heads, kv_heads, dim = (line.attributes[k] for k in ("heads", "kv_heads", "head_dim"))
    scale, window, sinks = (line.attributes[k] for k in ("scale", "window", "sinks"))
    q, k, v = qkv.split((heads * dim, kv_heads * dim, kv_heads * dim), -1)
    q = q.reshape(-1, kv_heads, heads // kv_heads, dim)
    kv = step.kv(line.attributes["group"], line.attributes["pool_layer"])
    kv.append(k.reshape(-1, kv_heads, dim), v.reshape(-1, kv_heads, dim))
    out = torch.empty(len(qkv), heads * dim, dtype=qkv.dtype, device=qkv.device)
    for sequence, (begin, end) in enumerate(step.bounds):
        keys, values = kv.read(sequence)  # [slots, kv_heads, dim]: read after storage rounding (promise 1)
        scores = torch.einsum("tkgd,ckd->kgtc", q[begin:end], keys) * scale
        # A token's place: its slot, as if the branch of the tree it is on were all there is.
        places = torch.arange(len(keys), device=qkv.device)
        own = kv.base(sequence) + step.positions[begin:end] - step.positions[begin]
        places[len(keys) - len(own) :] = own
        seen = places[None, :] <= own[:, None]
        if step.trees[sequence] is not None:
            seen[:, len(keys) - len(own) :] = step.trees[sequence]
        if window:
            seen &= (places[None, :] > own[:, None] - window) | (places[None, :] < sinks)
        if sinks and window and line.attributes["rope"] is not None:
            back = (step.positions[begin:end] - (sinks + window - 1)).clamp(min=0)
            turned = _turned_back(q[begin:end], back, line.attributes["rope"])
            near = torch.einsum("tkgd,ckd->kgtc", turned, keys) * scale  # as if the window followed the sinks at once
            scores = torch.where(places < sinks, near, scores)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        kv.add_mass(sequence, weights.sum((1, 2)))
        out[begin:end] = torch.einsum("kgtc,ckd->tkgd", weights, values).reshape(end - begin, heads * dim)
    return out


def _turned_back(q: Any, by: Any, rope: Any) -> Any:  # [tokens, kv_heads, ratio, dim] -> `by` [tokens] positions back
    import torch  # noqa: PLC0415  heavy and optional

    cos, sin = (torch.from_numpy(table).to(q.device)[by][:, None, None, :] for table in rope.tables())
    turned = q.clone()
    half = rope.dim // 2
    first = slice(0, rope.dim, 2) if rope.interleaved else slice(0, half)
    second = slice(1, rope.dim, 2) if rope.interleaved else slice(half, rope.dim)
    a, b = q[..., first], q[..., second]
    turned[..., first], turned[..., second] = a * cos + b * sin, b * cos - a * sin
    return turned


def cost(batch: BatchShape, line: Line) -> Cost:
    """4 FLOPs a query-key pair, head and dimension (QKᵀ and PV). K and V: written once, each kept token read once."""
    heads, kv_heads, dim = (line.attributes[k] for k in ("heads", "kv_heads", "head_dim"))
    pairs, kv_tokens = batch.attention(line.attributes["reach"])
    per_token = line.attributes["storage"].bytes_per_token(kv_heads, dim)
    return Cost(
        flops=4 * pairs * heads * dim,
        kv_bytes=per_token * (kv_tokens + batch.tokens),
        activation_bytes=4 * batch.tokens * (line.inputs[0].width + line.output.width),
    )


# int8: AVX-512 reads q as 16 bits and weights as 15 (cpp/attend_integers.h); scores may have a spread of hundreds.
ATTEND = Op("attend", meaning, cost, error={"": 1e-4, "bf16": 1e-4, "int8": 1e-3})

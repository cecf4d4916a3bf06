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
    recent, near = line.attributes["recent"], None
    if recent is None:
        kv.append(k.reshape(-1, kv_heads, dim), v.reshape(-1, kv_heads, dim))
    else:
        near = step.kv(line.attributes["recent_group"], line.attributes["pool_layer"])
        near.append(k.reshape(-1, kv_heads, dim), v.reshape(-1, kv_heads, dim))
        kv.close(near)
    out = torch.empty(len(qkv), heads * dim, dtype=qkv.dtype, device=qkv.device)
    for sequence, (begin, end) in enumerate(step.bounds):
        if near is not None:
            scores = _of_blocks(q[begin:end], kv.read(sequence), near.read(sequence), kv.base(sequence), recent, scale)
            out[begin:end] = scores.reshape(end - begin, heads * dim)
            continue
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
            close = torch.einsum("tkgd,ckd->kgtc", turned, keys) * scale  # as if the window followed the sinks at once
            scores = torch.where(places < sinks, close, scores)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        kv.add_mass(sequence, weights.sum((1, 2)))
        out[begin:end] = torch.einsum("kgtc,ckd->tkgd", weights, values).reshape(end - begin, heads * dim)
    return out


def _of_blocks(q: Any, closed: Any, near: Any, base: int, recent: Any, scale: float) -> Any:
    """[tokens, kv_heads, ratio, dim]: blocks that were whole before a token's own as they are kept (E7); its own block
    and the sinks as they were. closed, near: (K, V), [slots, kv_heads, dim], numbers where there are any."""
    import torch  # noqa: PLC0415  heavy and optional

    places = torch.arange(len(closed[0]), device=q.device)
    own = base + torch.arange(len(q), device=q.device)
    is_near = (places >= (own // recent.block * recent.block)[:, None]) | (places < recent.sinks)  # [tokens, slots]
    near_scores, far_scores = (torch.einsum("tkgd,ckd->kgtc", q, kept[0]) * scale for kept in (near, closed))
    scores = torch.where(is_near, near_scores, far_scores)
    weights = scores.masked_fill(places > own[:, None], float("-inf")).softmax(-1)
    parts = ((weights * is_near, near[1]), (weights * ~is_near, closed[1]))
    return sum(torch.einsum("kgtc,ckd->tkgd", part, values) for part, values in parts)


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
    storage, recent = line.attributes["storage"], line.attributes["recent"]
    per_token = storage.bytes_per_token(kv_heads, dim)
    more = 0
    if recent is not None:  # tokens that are not in a whole block yet are kept otherwise; each is written twice
        per_near = storage.recent.bytes_per_token(kv_heads, dim)
        more = (per_near - per_token) * batch.attention(recent)[1] + per_near * batch.tokens
    return Cost(
        flops=4 * pairs * heads * dim,
        kv_bytes=per_token * (kv_tokens + batch.tokens) + more,
        activation_bytes=4 * batch.tokens * (line.inputs[0].width + line.output.width),
    )


# hack: q and weights are rounded to 8 bits a block (cpp/attend_closed.h).
# int8: AVX-512 reads q as 16 bits and weights as 15 (cpp/attend_integers.h); scores may have a spread of hundreds.
ATTEND = Op("attend", meaning, cost, error={"": 1e-4, "bf16": 1e-4, "int8": 1e-3, "hack": 2e-2})

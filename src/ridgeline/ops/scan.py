"""scan: the selective state space recurrence of Mamba-2, one decay a head; its state is read and written (K11).

For every head, with rate = softplus(time step + bias): state = state * exp(rate * decay) + B (rate * x), y = C state +
skip * x. The reference goes token by token; that transformers' chunked form agrees is a test.
"""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, mixed: Any, wide: Any) -> Any:
    """[tokens, shape.channels] (convolved x, B, C) and [tokens, shape.wide] (time steps last) -> [tokens, inner]."""
    import torch  # noqa: PLC0415  heavy and optional

    shape = line.attributes["shape"]
    decay, bias, skip = (step.tensor(weight).reshape(-1) for weight in line.weights)  # [heads] each
    x, b, c = mixed.split((shape.inner, shape.groups * shape.states, shape.groups * shape.states), -1)
    x = x.reshape(-1, shape.heads, shape.head_dim)
    b, c = (
        part.reshape(-1, shape.groups, shape.states).repeat_interleave(shape.heads // shape.groups, 1)
        for part in (b, c)
    )
    rate = torch.nn.functional.softplus(wide[:, shape.wide - shape.heads :] + bias)  # [tokens, heads]
    keep = (rate * decay).exp()
    state = step.state(line.attributes["state_layer"])
    out = torch.empty_like(x)
    for sequence, (begin, end) in enumerate(step.bounds):
        kept = state.read_scan(sequence)  # [heads, states, head_dim]
        for token in range(begin, end):
            fresh = b[token][:, :, None] * (rate[token][:, None] * x[token])[:, None, :]
            kept = kept * keep[token][:, None, None] + fresh
            out[token] = torch.einsum("hs,hsd->hd", c[token], kept)
        state.write_scan(sequence, kept)
    return (out + x * skip[:, None]).reshape(len(mixed), -1)


def cost(batch: BatchShape, line: Line) -> Cost:
    """5 FLOPs a token and state element: decay, outer product and sum, dot product. The state is read and written
    once a sequence and step, which is why it costs more bytes than KV at short contexts."""
    shape = line.attributes["shape"]
    elements = shape.heads * shape.states * shape.head_dim
    return Cost(
        flops=(5 * elements + 3 * shape.inner + 20 * shape.heads) * batch.tokens,
        weight_bytes=sum(weight.nbytes for weight in line.weights),
        kv_bytes=2 * line.attributes["storage"].scan_bytes(shape) * batch.sequences,
        activation_bytes=4 * (shape.channels + shape.heads + shape.inner) * batch.tokens,
    )


SCAN = Op("scan", meaning, cost, error={"": 1e-5})

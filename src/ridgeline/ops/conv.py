"""conv: causal convolution of every channel with its own taps, then silu; the last inputs are kept as state (K11)."""

from __future__ import annotations

from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .op import Line, Op
from .step import StepView


def meaning(step: StepView, line: Line, wide: Any) -> Any:  # [tokens, shape.wide] -> [tokens, shape.channels]
    import torch  # noqa: PLC0415  heavy and optional

    shape = line.attributes["shape"]
    x = wide[:, shape.inner : shape.inner + shape.channels]
    taps = step.tensor(line.weights[0])  # [channels, taps], the newest input last
    state = step.state(line.attributes["state_layer"])
    out = torch.empty_like(x)
    for sequence, (begin, end) in enumerate(step.bounds):
        seen = torch.cat([state.read_conv(sequence), x[begin:end]])  # [taps - 1 + tokens, channels]
        out[begin:end] = torch.einsum("tcj,cj->tc", seen.unfold(0, shape.taps, 1), taps)
        state.write_conv(sequence, seen[len(seen) - (shape.taps - 1) :])
    if len(line.weights) > 1:
        out += step.tensor(line.weights[1])[0]
    return torch.nn.functional.silu(out)


def cost(batch: BatchShape, line: Line) -> Cost:
    """2 FLOPs a tap and channel, 5 of silu; the state is read and written once a sequence."""
    shape = line.attributes["shape"]
    return Cost(
        flops=(2 * shape.taps + 5) * shape.channels * batch.tokens,
        weight_bytes=sum(weight.nbytes for weight in line.weights),
        kv_bytes=2 * line.attributes["storage"].conv_bytes(shape) * batch.sequences,
        activation_bytes=8 * shape.channels * batch.tokens,
    )


CONV = Op("conv", meaning, cost, error={"": 1e-5})

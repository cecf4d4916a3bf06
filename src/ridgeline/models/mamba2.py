"""Mamba-2: no attention and no separate feed-forward; every layer is one mixer with a recurrent state (K11)."""

from __future__ import annotations

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .spec import ModelSpec
from .weights import ModelWeights


def mamba2(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    shape = spec.state
    if shape is None:
        raise InvariantError(f"{spec.name} is a mamba2 model without the shape of its state")
    x = r.embed(w.embed)
    for index, mixer in enumerate(w.mixers):
        r.layer(index)
        h = r.norm(x, mixer.mixer_norm, spec.norm_eps, "mixer_norm")
        wide = r.linear(h, (mixer.wide,), "wide", (mixer.wide_bias,))  # gate, x, B, C, time steps
        mixed = r.conv(wide, mixer.conv, mixer.conv_bias, shape)
        y = r.scan(mixed, wide, (mixer.decay, mixer.rate_bias, mixer.skip), shape)
        y = r.gated_norm(y, wide, mixer.gated_norm, shape, spec.norm_eps)
        x = r.add(x, r.linear(y, (mixer.o,), "o", (mixer.o_bias,)), "mixer_add")
        r.cut()
    x = r.norm(r.gather(x), w.final_norm, spec.norm_eps, "final_norm")
    return r.sample(r.head(x, w.head))

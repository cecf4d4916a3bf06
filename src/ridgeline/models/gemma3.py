"""Gemma 3, text: scaled embedding, norms before and after each half of a layer, qk-norm, GeGLU, windows in most layers.

Windowed layers turn with their own rope (spec.local_rope). Norm gains here are plain: load adds the 1 of HF files.
"""

from __future__ import annotations

import math

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .parts import gated_mlp, self_attention
from .spec import ModelSpec
from .weights import ModelWeights


def gemma3(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    x = r.embed(w.embed, math.sqrt(spec.width))
    for index, layer in enumerate(w.layers):
        if layer.post_attend_norm is None or layer.post_mlp_norm is None:
            raise InvariantError(f"{spec.name}: layer {index} of gemma3 has no norms after attention and feed-forward")
        r.layer(index)
        h = r.norm(x, layer.attend_norm, spec.norm_eps, "attend_norm")
        h = self_attention(r, h, layer, spec, index)
        x = r.add(x, r.norm(h, layer.post_attend_norm, spec.norm_eps, "post_attend_norm"), "attend_add")
        h = gated_mlp(r, r.norm(x, layer.mlp_norm, spec.norm_eps, "mlp_norm"), layer, spec)
        x = r.add(x, r.norm(h, layer.post_mlp_norm, spec.norm_eps, "post_mlp_norm"), "mlp_add")
        r.cut()
    x = r.norm(r.gather(x), w.final_norm, spec.norm_eps, "final_norm")
    return r.sample(r.head(x, w.head))

"""Llama: pre-norm decoder, grouped-query attention with rope, SwiGLU. Also Mistral's and SmolLM2's shape.

With experts in the spec, a mixture of them takes the MLP's place (Mixtral, Qwen's MoE families).
"""

from __future__ import annotations

from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .parts import gated_mlp, mixture, self_attention
from .spec import ModelSpec
from .weights import ModelWeights


def llama(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    x = r.embed(w.embed)
    for index, layer in enumerate(w.layers):
        r.layer(index)
        h = r.norm(x, layer.attend_norm, spec.norm_eps, "attend_norm")
        x = r.add(x, self_attention(r, h, layer, spec, index), "attend_add")
        h = r.norm(x, layer.mlp_norm, spec.norm_eps, "mlp_norm")
        h = gated_mlp(r, h, layer, spec) if spec.experts is None else mixture(r, h, layer, spec, spec.experts)
        x = r.add(x, h, "mlp_add")
        r.cut()
    x = r.norm(r.gather(x), w.final_norm, spec.norm_eps, "final_norm")
    return r.sample(r.head(x, w.head))

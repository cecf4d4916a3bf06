"""Pieces families share: grouped-query self-attention and the gated MLP."""

from __future__ import annotations

from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .spec import ModelSpec
from .weights import LayerWeights


def self_attention(r: Recorder, x: Value, layer: LayerWeights, spec: ModelSpec, index: int) -> Value:
    """[tokens, width] -> same: q, k, v in one linear, norm of heads where the spec has it, rope, causal attention over
    kept tokens, output projection."""
    biases = (layer.q_bias, layer.k_bias, layer.v_bias) if spec.qkv_bias else None
    qkv = r.linear(x, (layer.q, layer.k, layer.v), "qkv", biases)
    if layer.q_norm is not None and layer.k_norm is not None:
        gains = (layer.q_norm, layer.k_norm)
        qkv = r.head_norm(qkv, gains, spec.heads, spec.kv_heads, spec.head_dim, spec.norm_eps)
    qkv = r.rope(qkv, spec.heads, spec.kv_heads, spec.head_dim, spec.rope_of(index))
    mixed = r.attend(qkv, spec.heads, spec.kv_heads, spec.head_dim, spec.query_scale, spec.window_of(index))
    return r.linear(mixed, (layer.o,), "o")


def gated_mlp(r: Recorder, x: Value, layer: LayerWeights, spec: ModelSpec) -> Value:
    """[tokens, width] -> same: down(activation(gate(x)) * up(x))."""
    gate_up = r.linear(x, (layer.gate, layer.up), "gate_up")
    return r.linear(r.activation(gate_up, spec.activation), (layer.down,), "down")

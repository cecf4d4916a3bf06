"""Pieces families share: grouped-query self-attention and the gated MLP."""

from __future__ import annotations

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .spec import Experts, ModelSpec
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
    if layer.gate is None or layer.up is None or layer.down is None:
        raise InvariantError(f"{spec.name}: a layer of {spec.family} has no MLP")
    gate_up = r.linear(x, (layer.gate, layer.up), "gate_up")
    return r.linear(r.activation(gate_up, spec.activation), (layer.down,), "down")


def mixture(r: Recorder, x: Value, layer: LayerWeights, spec: ModelSpec, experts: Experts) -> Value:
    """[tokens, width] -> same: the weighted sum of the chosen experts' gated MLPs, and the shared expert's (K8)."""
    if layer.router is None or layer.expert_gate is None or layer.expert_up is None or layer.expert_down is None:
        raise InvariantError(f"{spec.name}: a layer of {spec.family} has no experts")
    routed = r.route(r.linear(x, (layer.router,), "router"), experts.routing)
    shared: tuple[Value, ...] = ()
    if layer.gate is not None:
        shared = (gated_mlp(r, x, layer, spec),)
        if layer.shared_gate is not None:
            shared += (r.linear(x, (layer.shared_gate,), "shared_gate"),)
    stacks = (layer.expert_gate, layer.expert_up, layer.expert_down)
    return r.experts(x, routed, stacks, experts.routing, spec.activation, shared)

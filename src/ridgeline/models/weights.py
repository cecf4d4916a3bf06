"""Weights by role: LayerWeights and ModelWeights, and the names GGUF and Hugging Face files give them.

Every tensor a model needs must be there with its shape, and every tensor of a file must be known; anything else is
one UserError that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import UserError
from ridgeline.ops.recurrent import StateShape

from .spec import Experts, ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """Matrices are [outputs, inputs]; norms and biases are [1, n]. What a family lacks is None."""

    attend_norm: StoredWeight
    q: StoredWeight
    k: StoredWeight
    v: StoredWeight
    o: StoredWeight
    mlp_norm: StoredWeight
    gate: StoredWeight | None = None  # of the MLP; with experts: of the shared one
    up: StoredWeight | None = None
    down: StoredWeight | None = None
    q_bias: StoredWeight | None = None
    k_bias: StoredWeight | None = None
    v_bias: StoredWeight | None = None
    q_norm: StoredWeight | None = None
    k_norm: StoredWeight | None = None
    post_attend_norm: StoredWeight | None = None
    post_mlp_norm: StoredWeight | None = None
    router: StoredWeight | None = None  # [experts, width]
    expert_gate: StoredWeight | None = None  # stacks: [experts * ffn, width], and down [experts * width, ffn]
    expert_up: StoredWeight | None = None
    expert_down: StoredWeight | None = None
    shared_gate: StoredWeight | None = None  # [1, width]: how much of the shared expert


@dataclass(frozen=True, slots=True, eq=False)
class MixerWeights:
    """A recurrent layer. wide: gate, x, B, C and time steps from one input; conv [channels, taps]; decay (negative),
    rate_bias and skip [1, heads]."""

    mixer_norm: StoredWeight
    wide: StoredWeight
    conv: StoredWeight
    decay: StoredWeight
    rate_bias: StoredWeight
    skip: StoredWeight
    gated_norm: StoredWeight
    o: StoredWeight
    conv_bias: StoredWeight | None = None
    wide_bias: StoredWeight | None = None
    o_bias: StoredWeight | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ModelWeights:
    """`head` is `embed` itself when the spec says tied. A model of recurrent layers has `mixers` and no `layers`."""

    embed: StoredWeight
    layers: tuple[LayerWeights, ...]
    final_norm: StoredWeight
    head: StoredWeight
    mixers: tuple[MixerWeights, ...] = ()

    def __iter__(self) -> Iterator[StoredWeight]:
        """Each stored tensor once."""
        yield self.embed
        for layer in self.layers:
            yield from (w for field in LayerWeights.__slots__ if (w := getattr(layer, field)) is not None)
        for mixer in self.mixers:
            yield from (w for field in MixerWeights.__slots__ if (w := getattr(mixer, field)) is not None)
        yield self.final_norm
        if self.head is not self.embed:
            yield self.head

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return sum(weight.nbytes for weight in self)

    @property
    def parameters(self) -> int:
        """Numbers held, a tied head once (A8)."""
        return sum(weight.rows * weight.columns for weight in self)


Shape = tuple[int, int]

GGUF_NAMES = {
    "embed": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight",
    "attend_norm": "attn_norm.weight", "q": "attn_q.weight", "k": "attn_k.weight", "v": "attn_v.weight",
    "o": "attn_output.weight", "mlp_norm": "ffn_norm.weight", "gate": "ffn_gate.weight", "up": "ffn_up.weight",
    "down": "ffn_down.weight", "q_bias": "attn_q.bias", "k_bias": "attn_k.bias", "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight",
    "post_attend_norm": "post_attention_norm.weight", "post_mlp_norm": "post_ffw_norm.weight",
    "router": "ffn_gate_inp.weight", "expert_gate": "ffn_gate_exps.weight", "expert_up": "ffn_up_exps.weight",
    "expert_down": "ffn_down_exps.weight", "shared_gate": "ffn_gate_inp_shexp.weight",
    "layer": "blk.{}.",
    "mixer_norm": "attn_norm.weight", "wide": "ssm_in.weight", "conv": "ssm_conv1d.weight",
    "conv_bias": "ssm_conv1d.bias", "decay": "ssm_a", "rate_bias": "ssm_dt.bias", "skip": "ssm_d",
    "gated_norm": "ssm_norm.weight",
}  # fmt: skip
GGUF_SHARED = {
    "gate": "ffn_gate_shexp.weight", "up": "ffn_up_shexp.weight", "down": "ffn_down_shexp.weight",
}  # fmt: skip
HF_NAMES = {
    "embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight",
    "attend_norm": "input_layernorm.weight", "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight", "o": "self_attn.o_proj.weight", "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight",
    "q_bias": "self_attn.q_proj.bias", "k_bias": "self_attn.k_proj.bias", "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
    "router": "mlp.gate.weight", "expert_gate": "mlp.experts.gate", "expert_up": "mlp.experts.up",
    "expert_down": "mlp.experts.down", "shared_gate": "mlp.shared_expert_gate.weight",  # stacks: models/stacks.py
    "layer": "model.layers.{}.",
}  # fmt: skip
HF_SHARED = {
    "gate": "mlp.shared_expert.gate_proj.weight", "up": "mlp.shared_expert.up_proj.weight",
    "down": "mlp.shared_expert.down_proj.weight",
}  # fmt: skip
HF_POST_NORMS = {  # with norms on both sides, "post_attention_layernorm" is what it says
    "post_attend_norm": "post_attention_layernorm.weight", "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}  # fmt: skip
HF_MIXER_NAMES = {
    "embed": "backbone.embeddings.weight", "final_norm": "backbone.norm_f.weight", "head": "lm_head.weight",
    "mixer_norm": "norm.weight", "wide": "mixer.in_proj.weight", "wide_bias": "mixer.in_proj.bias",
    "conv": "mixer.conv1d.weight", "conv_bias": "mixer.conv1d.bias", "decay": "mixer.A_log",
    "rate_bias": "mixer.dt_bias", "skip": "mixer.D", "gated_norm": "mixer.norm.weight",
    "o": "mixer.out_proj.weight", "o_bias": "mixer.out_proj.bias", "layer": "backbone.layers.{}.",
}  # fmt: skip
GGUF_MIXER_NAMES = GGUF_NAMES | {"o": "ssm_out.weight"}
# Tables that older writers stored and that follow from the spec: dropped knowingly. (`rope_freqs` of Llama 3.1 GGUF
# files is not one of them: it is read into the spec.)
DERIVED = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq|blk\.\d+\.attn_rot_embd\.weight")


def layer_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """role -> (rows, columns) of a layer's tensors; norms and biases are [1, n]."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes = {
        "attend_norm": (1, spec.width), "q": (q, spec.width), "k": (kv, spec.width), "v": (kv, spec.width),
        "o": (spec.width, q), "mlp_norm": (1, spec.width), "gate": (spec.ffn, spec.width), "up": (spec.ffn, spec.width),
        "down": (spec.width, spec.ffn),
    }  # fmt: skip
    if spec.experts is not None:
        shapes = _expert_shapes(spec, spec.experts, shapes)
    if spec.qkv_bias:
        shapes |= {"q_bias": (1, q), "k_bias": (1, kv), "v_bias": (1, kv)}
    if spec.qk_norm:
        shapes |= {"q_norm": (1, spec.head_dim), "k_norm": (1, spec.head_dim)}
    if spec.post_norms:
        shapes |= {"post_attend_norm": (1, spec.width), "post_mlp_norm": (1, spec.width)}
    return shapes


def _expert_shapes(spec: ModelSpec, experts: Experts, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """With a router and stacks in place of the MLP, which stays only as the shared expert."""
    count, ffn, shared = experts.routing.experts, experts.ffn, experts.shared_ffn
    shapes = {role: shape for role, shape in shapes.items() if role not in ("gate", "up", "down")}
    shapes |= {
        "router": (count, spec.width), "expert_gate": (count * ffn, spec.width), "expert_up": (count * ffn, spec.width),
        "expert_down": (count * spec.width, ffn),
    }  # fmt: skip
    if shared:
        shapes |= {
            "gate": (shared, spec.width), "up": (shared, spec.width), "down": (spec.width, shared),
            "shared_gate": (1, spec.width),
        }  # fmt: skip
    return shapes


def mixer_shapes(spec: ModelSpec, shape: StateShape) -> dict[str, Shape]:
    """role -> (rows, columns) of a recurrent layer's tensors."""
    shapes = {
        "mixer_norm": (1, spec.width), "wide": (shape.wide, spec.width), "conv": (shape.channels, shape.taps),
        "decay": (1, shape.heads), "rate_bias": (1, shape.heads), "skip": (1, shape.heads),
        "gated_norm": (1, shape.inner), "o": (spec.width, shape.inner),
    }  # fmt: skip
    if spec.conv_bias:
        shapes |= {"conv_bias": (1, shape.channels)}
    if spec.proj_bias:
        shapes |= {"wide_bias": (1, shape.wide), "o_bias": (1, spec.width)}
    return shapes


def gguf_names(spec: ModelSpec) -> Mapping[str, str]:
    """What GGUF files call each role."""
    if spec.state is not None:
        return GGUF_MIXER_NAMES
    return GGUF_NAMES | GGUF_SHARED if spec.experts is not None else GGUF_NAMES


def hf_names(spec: ModelSpec) -> Mapping[str, str]:
    """What Hugging Face files call each role."""
    if spec.state is not None:
        return HF_MIXER_NAMES
    if spec.experts is not None:
        return HF_NAMES | HF_SHARED
    return HF_NAMES | HF_POST_NORMS if spec.post_norms else HF_NAMES


def outer_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """role -> (rows, columns) outside the layers; no head when tied."""
    shapes = {"embed": (spec.vocabulary, spec.width), "final_norm": (1, spec.width)}
    return shapes if spec.tied else shapes | {"head": (spec.vocabulary, spec.width)}


def build(spec: ModelSpec, make: Callable[[str, Shape, int | None], StoredWeight]) -> ModelWeights:
    """Ask `make(role, shape, layer)` for every tensor the spec needs, in the order of the Program."""
    outer = {role: make(role, shape, None) for role, shape in outer_shapes(spec).items()}
    head = outer.get("head", outer["embed"])
    if spec.state is not None:
        shapes = mixer_shapes(spec, spec.state)
        mixers = tuple(
            MixerWeights(**{role: make(role, shape, index) for role, shape in shapes.items()})
            for index in range(spec.layers)
        )
        return ModelWeights(outer["embed"], (), outer["final_norm"], head, mixers)
    shapes = layer_shapes(spec)
    layers = tuple(
        LayerWeights(**{role: make(role, shape, index) for role, shape in shapes.items()})
        for index in range(spec.layers)
    )
    return ModelWeights(outer["embed"], layers, outer["final_norm"], head)


def assemble(
    spec: ModelSpec, tensors: Mapping[str, StoredWeight], names: Mapping[str, str], source: str,
    dropped: frozenset[str] = frozenset(),
) -> ModelWeights:  # fmt: skip
    """Weights of a file by role. `dropped`: tensors the caller has accounted for.

    UserError naming the tensor when one is missing, has another shape, or is not known.
    """
    unread = {name for name in tensors if not DERIVED.fullmatch(name)} - dropped
    if spec.tied:
        unread.discard(names["head"])  # a copy of the embedding that some writers add

    def take(role: str, shape: Shape, layer: int | None) -> StoredWeight:
        name = names[role] if layer is None else names["layer"].format(layer) + names[role]
        weight = tensors.get(name)
        if weight is None:
            raise UserError(
                f"{source} lacks tensor {name} {list(shape)}, which {spec.family} with {spec.layers} layers needs. "
                "The file is incomplete or its metadata is wrong."
            )
        if (weight.rows, weight.columns) != shape:
            raise UserError(
                f"{source}: tensor {name} is {[weight.rows, weight.columns]}; its metadata ask for {list(shape)}. "
                "The file is damaged or its metadata is wrong."
            )
        unread.discard(name)
        return weight

    weights = build(spec, take)
    if unread:
        listed = ", ".join(sorted(unread)[:8]) + (f" and {len(unread) - 8} more" if len(unread) > 8 else "")
        raise UserError(
            f"{source} holds tensors that {spec.family} does not have: {listed}. Running without them would "
            "give wrong answers, so it is refused."
        )
    return weights


def map_weights(weights: ModelWeights, change: Callable[[str, StoredWeight], StoredWeight]) -> ModelWeights:
    """The same model with `change(role, weight)` in place of every tensor; a tied head stays the embedding."""
    embed = change("head" if weights.head is weights.embed else "embed", weights.embed)
    layers = tuple(LayerWeights(**_map_layer(layer, change)) for layer in weights.layers)
    mixers = tuple(MixerWeights(**_map_layer(mixer, change)) for mixer in weights.mixers)
    final_norm = change("final_norm", weights.final_norm)
    head = embed if weights.head is weights.embed else change("head", weights.head)
    return ModelWeights(embed, layers, final_norm, head, mixers)


def _map_layer(
    layer: LayerWeights | MixerWeights, change: Callable[[str, StoredWeight], StoredWeight]
) -> dict[str, StoredWeight]:
    roles = ((role, getattr(layer, role)) for role in type(layer).__slots__)
    return {role: change(role, weight) for role, weight in roles if weight is not None}

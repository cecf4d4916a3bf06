"""ModelSpec from a Hugging Face config.json. Refuses what the families here do not compute, field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ridgeline.kit.errors import UserError
from ridgeline.kit.fields import Fields
from ridgeline.ops.route import Routing

from . import mamba2_fields
from .family import FAMILIES
from .fields import LIMITS
from .spec import TRAITS, Experts, ModelSpec, Rope

ARCHITECTURES = {  # model_type -> family
    "llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3",
    "mixtral": "mixtral", "qwen2_moe": "qwen2_moe", "qwen3_moe": "qwen3_moe",
    "mamba2": "mamba2",
}  # fmt: skip
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
MAX_CONFIG_BYTES = 1 << 22
# Defaults of the configuration classes in transformers, where published files leave the field out.
DEFAULT_NORM_EPS = 1e-6
DEFAULT_ROPE_BASE = 10_000.0
DEFAULT_CONTEXT = {
    "llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768, "gemma3": 131_072, "mixtral": 131_072,
    "qwen2_moe": 32_768, "qwen3_moe": 32_768,
}  # fmt: skip
DEFAULT_HEAD_DIM = {"qwen3": 128, "gemma3": 256}
DEFAULT_WINDOW = 4096
GEMMA_PATTERN = 6  # every sixth layer reads everything
GEMMA_ROPE_BASE = 1e6
GEMMA_LOCAL_ROPE_BASE = 10_000.0
GEMMA_PRE_SCALE = 256.0


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size. UserError when it is not one (NaN and Infinity included)."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes. It is no configuration.")
        value = json.loads(path.read_bytes(), parse_constant=_constant)
        if isinstance(value, dict) and any(_has_infinity(v) for key, v in value.items() if key != "time_step_limit"):
            raise ValueError("Infinity is not a JSON number")  # Mamba-2's files say so of their clamp, and mean none
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object. Fetch it again.")
    return value


def _constant(name: str) -> float:
    if name == "Infinity":
        return math.inf
    raise ValueError(f"{name} is not a JSON number")


def _has_infinity(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value == math.inf or any(map(_has_infinity, parts))


def spec_from_config(config: Mapping[str, Any], name: str, source: str) -> ModelSpec:
    """The numbers of a model. UserError names the field that is missing, out of range or not supported."""
    fields = Fields(config, source)
    kind = fields.text("model_type")
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{source} is a {kind!r} model; supported: {', '.join(sorted(ARCHITECTURES))} "
            f"(families {', '.join(FAMILIES.names())})."
        )
    family = ARCHITECTURES[kind]
    if family == "mamba2":
        return mamba2_fields.spec_from_config(fields, name)
    activation = _activation(fields, family)
    _refuse_unsupported(fields, family)
    width = fields.integer("hidden_size", LIMITS["width"])
    heads = fields.integer("num_attention_heads", LIMITS["heads"])
    layers = fields.integer("num_hidden_layers", LIMITS["layers"])
    vocabulary = fields.integer("vocab_size", LIMITS["vocabulary"])
    context = fields.integer("max_position_embeddings", LIMITS["context"], DEFAULT_CONTEXT[family])
    if fields.values.get("head_dim") is None and family not in DEFAULT_HEAD_DIM and width % heads:
        raise UserError(f"{source}: hidden_size {width} is not a multiple of num_attention_heads {heads}.")
    head_dim = fields.integer("head_dim", LIMITS["width"], DEFAULT_HEAD_DIM.get(family, width // heads))
    rope, local_rope = _ropes(fields, family, head_dim, context)
    bos = fields.token_ids("bos_token_id", vocabulary)
    spec = ModelSpec(
        family=family, name=name, layers=layers, width=width, heads=heads,
        kv_heads=fields.integer("num_key_value_heads", LIMITS["heads"], heads), head_dim=head_dim,
        ffn=fields.integer("intermediate_size", LIMITS["ffn"]), vocabulary=vocabulary, context=context,
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, DEFAULT_NORM_EPS),
        rope=rope, tied=fields.flag("tie_word_embeddings", family == "gemma3"), activation=activation,
        windows=_windows(fields, family, layers), bos=bos[0] if bos else None,
        eos=fields.token_ids("eos_token_id", vocabulary), local_rope=local_rope,
        query_pre_scale=_query_pre_scale(fields, family), experts=experts_of(fields, family), **TRAITS.get(family, {}),
    )  # fmt: skip
    check_spec(spec, source)
    return spec


def check_spec(spec: ModelSpec, source: str) -> None:
    """Relations between the numbers that every family relies on."""
    if spec.heads % spec.kv_heads:
        raise UserError(f"{source}: {spec.heads} query heads cannot share {spec.kv_heads} key-value heads evenly.")
    if spec.head_dim % 2 or spec.rope.dim % 2 or not 2 <= spec.rope.dim <= spec.head_dim:
        raise UserError(
            f"{source}: rotary dimension {spec.rope.dim} of head dimension {spec.head_dim}; both must be even, and the "
            "first not larger."
        )


def _activation(fields: Fields, family: str) -> str:
    key, default = ("hidden_activation", "gelu_pytorch_tanh") if family == "gemma3" else ("hidden_act", "silu")
    activation = fields.text(key, default)
    if activation not in ACTIVATIONS:
        raise UserError(f"{fields.source}: {key} {activation!r}; supported: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


def _query_pre_scale(fields: Fields, family: str) -> float:
    return fields.number("query_pre_attn_scalar", 1e-3, 1e6, GEMMA_PRE_SCALE) if family == "gemma3" else 0.0


def _refuse_unsupported(fields: Fields, family: str) -> None:
    if family not in ("qwen2", "qwen2_moe") and fields.flag("attention_bias", False):
        raise UserError(f"{fields.source}: attention_bias is true; the {family} family here has none.")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.values.get(key) is not None:
            raise UserError(f"{fields.source}: {key} is set; the families here cap nothing.")
    if fields.flag("use_bidirectional_attention", False):
        raise UserError(f"{fields.source}: use_bidirectional_attention is true; attention here is causal.")
    if fields.flag("mlp_bias", False):
        raise UserError(f"{fields.source}: mlp_bias is true; the families here have none.")


def _ropes(fields: Fields, family: str, head_dim: int, context: int) -> tuple[Rope, Rope | None]:
    """(rope, rope of layers with a window where it differs)."""
    scaling = fields.table("rope_parameters") or fields.table("rope_scaling")
    if family != "gemma3":
        return _rope(fields, scaling, head_dim, context), None
    nested = fields.table("rope_parameters")  # by kind of layer (transformers 5), which may leave bases out
    table = (nested.table("full_attention") if nested else None) or (None if nested else scaling)
    local = nested.table("sliding_attention") if nested else None
    base = (table or fields).number("rope_theta", 1.0, 1e12, fields.number("rope_theta", 1.0, 1e12, GEMMA_ROPE_BASE))
    local_base = fields.number("rope_local_base_freq", 1.0, 1e12, GEMMA_LOCAL_ROPE_BASE)
    if local is not None:
        local_base = local.number("rope_theta", 1.0, 1e12, local_base)
    return (
        Rope(head_dim, base, context, scaling=_scaling(table, context)),
        Rope(head_dim, local_base, context, scaling=_scaling(local, context)),
    )


def _rope(fields: Fields, scaling: Fields | None, head_dim: int, context: int) -> Rope:
    """rope_theta and rope_scaling, or rope_parameters (transformers 5)."""
    theta_source = scaling if scaling and scaling.values.get("rope_theta") is not None else fields
    base = theta_source.number("rope_theta", 1.0, 1e12, DEFAULT_ROPE_BASE)
    share = fields.number("partial_rotary_factor", 0.0, 1.0, 1.0)
    return Rope(int(head_dim * share), base, context, scaling=_scaling(scaling, context))


def _scaling(scaling: Fields | None, context: int) -> tuple[str | float, ...] | None:
    if scaling is None:
        return None
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return "linear", scaling.number("factor", 1.0, 1e6)
    if kind == "llama3":
        low = scaling.number("low_freq_factor", 1e-6, 1e6)
        high = scaling.number("high_freq_factor", 1e-6, 1e6)
        if high <= low:
            raise UserError(f"{scaling.source}: high_freq_factor {high:g} must be above low_freq_factor {low:g}.")
        original = scaling.integer("original_max_position_embeddings", LIMITS["context"], context)
        return "llama3", scaling.number("factor", 1.0, 1e6), low, high, float(original)
    raise UserError(f"{scaling.source}: rope type {kind!r}; supported: default, linear, llama3.")


def experts_of(fields: Fields, family: str) -> Experts | None:
    """The mixture of a MoE family; None of the others."""
    if family not in ("mixtral", "qwen2_moe", "qwen3_moe"):
        return None
    if family == "mixtral":
        return Experts(_routing(fields, 8, 2, True), fields.integer("intermediate_size", LIMITS["ffn"]))
    if fields.integer("decoder_sparse_step", LIMITS["layers"], 1) != 1 or fields.values.get("mlp_only_layers"):
        raise UserError(f"{fields.source}: some layers have no experts; in the {family} family here all have.")
    if fields.flag("use_sliding_window", False):
        raise UserError(f"{fields.source}: use_sliding_window is true; the {family} family here reads back everything.")
    routing = _routing(fields, *((60, 4) if family == "qwen2_moe" else (128, 8)), False)
    shared = fields.integer("shared_expert_intermediate_size", LIMITS["ffn"], 5632) if family == "qwen2_moe" else 0
    ffn = fields.integer("moe_intermediate_size", LIMITS["ffn"], 1408 if family == "qwen2_moe" else 768)
    return Experts(routing, ffn, shared)


def _routing(fields: Fields, experts: int, chosen: int, renormalise: bool) -> Routing:
    key = "num_experts" if fields.values.get("num_experts") is not None else "num_local_experts"
    experts = fields.integer(key, LIMITS["experts"], experts)
    chosen = fields.integer("num_experts_per_tok", experts, chosen)
    return Routing(experts, chosen, renormalise=fields.flag("norm_topk_prob", renormalise))


def _windows(fields: Fields, family: str, layers: int) -> tuple[int, ...]:
    """Keys each layer reads back. Mistral: all layers; Qwen: the layers from max_window_layers on, when enabled;
    Gemma 3: five layers of six. `layer_types` goes before the last two."""
    if family in ("llama", "qwen2_moe", "qwen3_moe"):
        return ()
    if family in ("qwen2", "qwen3") and not fields.flag("use_sliding_window", False):
        return ()
    if fields.values.get("sliding_window") is None and ("sliding_window" in fields.values or family == "mixtral"):
        return ()
    window = fields.integer("sliding_window", LIMITS["context"], DEFAULT_WINDOW)
    if family in ("mistral", "mixtral"):
        return (window,) * layers
    kinds = fields.values.get("layer_types")
    if kinds is None and family == "gemma3":
        pattern = fields.integer("sliding_window_pattern", LIMITS["layers"], GEMMA_PATTERN)
        return tuple(window if (layer + 1) % pattern else 0 for layer in range(layers))
    if kinds is None:
        first = fields.integer("max_window_layers", LIMITS["layers"], 28, least=0)
        return tuple(window if layer >= first else 0 for layer in range(layers))
    known = {"sliding_attention": window, "full_attention": 0}
    if not isinstance(kinds, list) or len(kinds) != layers or not all(str(kind) in known for kind in kinds):
        raise UserError(
            f"{fields.source}: layer_types must name one of {', '.join(known)} for each of {layers} layers."
        )
    return tuple(known[kind] for kind in kinds)

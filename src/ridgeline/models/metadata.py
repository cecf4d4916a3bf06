"""ModelSpec and text.Vocabulary from GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ridgeline.formats.gguf import StringArray
from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import UserError
from ridgeline.kit.fields import Fields
from ridgeline.ops.route import Routing
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.text.vocabulary import Vocabulary

from . import mamba2_fields
from .config import GEMMA_LOCAL_ROPE_BASE, GEMMA_PATTERN, check_spec
from .family import FAMILIES
from .fields import LIMITS
from .spec import TRAITS, Experts, ModelSpec, Rope

DEFAULT_ROPE_BASE = 10_000.0  # GGUF specification
ROPE_FACTORS = "rope_freqs.weight"
# Architectures of GGUF files with experts -> family; Mixtral calls itself llama there.
MIXTURES = {"llama": "mixtral", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
INTERLEAVED = frozenset({"llama"})  # families whose q and k rows convert_hf_to_gguf.py permutes
GEMMA_27B_LAYERS = 62  # the one Gemma 3 whose scores are divided by sqrt(width / heads), as llama.cpp tells it too
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def spec_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, StoredWeight], name: str, source: str
) -> ModelSpec:
    """The numbers of a model. UserError names the key that is missing, out of range or not supported."""
    fields = Fields(metadata, source)
    architecture = fields.text("general.architecture")
    family = MIXTURES.get(architecture, architecture) if fields.is_set(f"{architecture}.expert_count") else architecture
    if family not in FAMILIES:
        raise UserError(
            f"{source} is a {architecture!r} model; supported architectures: "
            f"{', '.join(sorted({*FAMILIES.names(), *MIXTURES} - set(MIXTURES.values())))}."
        )
    if "token_embd.weight" not in tensors:
        raise UserError(f"{source} lacks tensor token_embd.weight, the embedding. The file is incomplete.")
    if family == "mamba2":
        return _mamba2(fields, tensors, name)
    width = fields.integer(f"{architecture}.embedding_length", LIMITS["width"])
    heads = fields.integer(f"{architecture}.attention.head_count", LIMITS["heads"])
    layers = fields.integer(f"{architecture}.block_count", LIMITS["layers"])
    context = fields.integer(f"{architecture}.context_length", LIMITS["context"])
    vocabulary = tensors["token_embd.weight"].rows
    head_dim = fields.integer(f"{architecture}.attention.key_length", LIMITS["width"], max(1, width // heads))
    if fields.integer(f"{architecture}.attention.value_length", LIMITS["width"], head_dim) != head_dim:
        raise UserError(f"{source}: key and value heads differ in length, which {family} here does not compute.")
    if any(fields.is_set(f"{architecture}.{kind}_logit_softcapping") for kind in ("attn", "final")):
        raise UserError(f"{source} caps its logits, which the {family} family here does not compute.")
    bos = fields.token_ids("tokenizer.ggml.bos_token_id", vocabulary)
    is_sentencepiece = fields.text("tokenizer.ggml.model", "none") == "llama"
    spec = ModelSpec(
        family=family, name=name, layers=layers, width=width, heads=heads,
        kv_heads=fields.integer(f"{architecture}.attention.head_count_kv", LIMITS["heads"], heads), head_dim=head_dim,
        ffn=fields.integer(f"{architecture}.feed_forward_length", LIMITS["ffn"]), vocabulary=vocabulary,
        context=context, tied="output.weight" not in tensors,
        norm_eps=fields.number(f"{architecture}.attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope=_rope(fields, architecture, head_dim, context, tensors.get(ROPE_FACTORS)),
        activation="gelu_tanh" if family == "gemma3" else "silu", windows=_windows(fields, architecture, layers),
        local_rope=_local_rope(fields, architecture, head_dim, context),
        query_pre_scale=width / heads if family == "gemma3" and layers == GEMMA_27B_LAYERS else 0.0,
        bos=bos[0] if bos else None, eos=_ends(fields, vocabulary),
        experts=_experts(fields, architecture, family), **TRAITS.get(family, {}),
        # llama.cpp starts texts with bos for SentencePiece vocabularies that do not say otherwise
        add_bos=fields.flag("tokenizer.ggml.add_bos_token", is_sentencepiece),
    )  # fmt: skip
    check_spec(spec, source)
    return spec


def _experts(fields: Fields, architecture: str, family: str) -> Experts | None:
    count = fields.integer(f"{architecture}.expert_count", LIMITS["experts"], 0, least=0)
    if not count:
        return None
    if architecture not in MIXTURES:
        raise UserError(f"{fields.source} is a mixture of experts, which the {family} family here does not compute.")
    chosen = fields.integer(f"{architecture}.expert_used_count", count)
    renormalise = fields.flag(f"{architecture}.expert_weights_norm", family != "qwen2_moe")  # as llama.cpp has it
    scale = fields.number(f"{architecture}.expert_weights_scale", 0.0, 1e6, 1.0) or 1.0  # 0: writers' "not set"
    ffn = fields.integer(f"{architecture}.feed_forward_length", LIMITS["ffn"])
    ffn = fields.integer(f"{architecture}.expert_feed_forward_length", LIMITS["ffn"], ffn)
    shared = 0
    if family == "qwen2_moe":
        shared = fields.integer(f"{architecture}.expert_shared_feed_forward_length", LIMITS["ffn"])
    return Experts(Routing(count, chosen, renormalise=renormalise, scale=scale), ffn, shared)


def _mamba2(fields: Fields, tensors: Mapping[str, StoredWeight], name: str) -> ModelSpec:
    vocabulary = tensors["token_embd.weight"].rows
    bos = fields.token_ids("tokenizer.ggml.bos_token_id", vocabulary)
    return replace(
        mamba2_fields.spec_from_gguf(fields, vocabulary, name, "output.weight" not in tensors),
        bos=bos[0] if bos else None, eos=_ends(fields, vocabulary),
        add_bos=fields.flag("tokenizer.ggml.add_bos_token", False),
    )  # fmt: skip


def _ends(fields: Fields, vocabulary: int) -> tuple[int, ...]:
    ends = [token for key in END_KEYS for token in fields.token_ids(f"tokenizer.ggml.{key}", vocabulary)]
    return tuple(dict.fromkeys(ends))


def _rope(fields: Fields, family: str, head_dim: int, context: int, factors: StoredWeight | None) -> Rope:
    dim = fields.integer(f"{family}.rope.dimension_count", LIMITS["width"], head_dim)
    base = fields.number(f"{family}.rope.freq_base", 1.0, 1e12, DEFAULT_ROPE_BASE)
    kind = fields.text(f"{family}.rope.scaling.type", "none")
    scaling: tuple[str | float, ...] | None = None
    if kind == "linear":
        scaling = ("linear", fields.number(f"{family}.rope.scaling.factor", 1e-6, 1e6))
    elif kind != "none":
        raise UserError(f"{fields.source}: rope scaling {kind!r}; supported: none, linear, rope_freqs.")
    if factors is not None:
        values = factors.unpack().ravel()
        if scaling or values.size != dim // 2 or not np.isfinite(values).all() or not (values > 0).all():
            raise UserError(f"{fields.source}: {ROPE_FACTORS} must be {dim // 2} positive factors, alone.")
        scaling = ("factors", *(float(value) for value in values))
    return Rope(dim, base, context, interleaved=family in INTERLEAVED, scaling=scaling)


def _local_rope(fields: Fields, family: str, head_dim: int, context: int) -> Rope | None:
    """Of Gemma 3's layers with a window: never scaled."""
    if family != "gemma3":
        return None
    base = fields.number(f"{family}.rope.freq_base_swa", 1.0, 1e12, GEMMA_LOCAL_ROPE_BASE)
    return Rope(head_dim, base, context)


def _windows(fields: Fields, family: str, layers: int) -> tuple[int, ...]:
    """Keys each layer reads back: all layers alike, but for Gemma 3."""
    window = fields.integer(f"{family}.attention.sliding_window", LIMITS["context"], 0, least=0)
    if not window:
        return ()
    if family != "gemma3":
        return (window,) * layers
    key = f"{family}.attention.sliding_window_pattern"
    listed = fields.values.get(key)
    if isinstance(listed, np.ndarray):  # which layers have the window
        if listed.dtype != np.bool_ or listed.shape != (layers,):
            raise UserError(f"{fields.source}: {key} must say true or false for each of {layers} layers.")
        return tuple(window if local else 0 for local in listed.tolist())
    pattern = fields.integer(key, LIMITS["layers"], GEMMA_PATTERN)
    return tuple(window if (layer + 1) % pattern else 0 for layer in range(layers))


def tokenizer_from_gguf(metadata: Mapping[str, Any], spec: ModelSpec, source: str) -> Tokenizer | None:
    """The file's tokenizer; None when it has none. UserError when it has one we cannot rebuild."""
    if "tokenizer.ggml.tokens" not in metadata:
        return None
    fields = Fields(metadata, source)
    tokens = _strings(metadata, "tokenizer.ggml.tokens", source)
    unknown = fields.token_ids("tokenizer.ggml.unknown_token_id", len(tokens))
    if len(tokens) > spec.vocabulary:
        raise UserError(f"{source} names {len(tokens)} tokens but has {spec.vocabulary} embeddings. Convert it again.")
    vocabulary = Vocabulary(
        model=fields.text("tokenizer.ggml.model"),
        pre=fields.text("tokenizer.ggml.pre", "default"),
        tokens=tokens,
        types=_numbers(metadata, "tokenizer.ggml.token_type", source),
        merges=_strings(metadata, "tokenizer.ggml.merges", source),
        scores=_numbers(metadata, "tokenizer.ggml.scores", source),
        unknown=unknown[0] if unknown else None,
        space_prefix=fields.flag("tokenizer.ggml.add_space_prefix", True),
    )
    return Tokenizer.from_vocabulary(vocabulary, bos=spec.bos, eos=spec.eos, add_bos=spec.add_bos)


def _strings(metadata: Mapping[str, Any], key: str, source: str) -> list[str]:
    value = metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, StringArray):
        raise UserError(f"{source}: {key} is not a list of strings. Convert it again.")
    return value.read()


def _numbers(metadata: Mapping[str, Any], key: str, source: str) -> list[Any]:
    value = metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, np.ndarray):
        raise UserError(f"{source}: {key} is not a list of numbers. Convert it again.")
    listed: list[Any] = value.tolist()
    return listed

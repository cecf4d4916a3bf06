"""ModelSpec of Mamba-2 from config.json or GGUF metadata, and what differs between the two kinds of file.

Refuses what the family here does not compute: another activation, a clamp of the time step.
"""
# size: one argument a number of the architecture

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ridgeline.formats.format import FORMATS
from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import UserError
from ridgeline.kit.fields import Fields
from ridgeline.ops.recurrent import StateShape

from .fields import LIMITS
from .spec import ModelSpec, Rope

# No position enters the model, so files name no context; llama.cpp's converter writes this number.
CONTEXT = 1 << 20
MOST_TAPS, MOST_STATES = 16, 1024
NO_ROPE = Rope(2, 1.0, 1)  # nothing is turned
VECTORS = frozenset({"decay", "skip", "rate_bias", "gated_norm"})  # files give them various second dimensions of 1


def spec_from_config(fields: Fields, name: str) -> ModelSpec:
    """From a Hugging Face config.json (Mamba2Config); defaults are those of that class."""
    if fields.text("hidden_act", "silu") != "silu":
        raise UserError(f"{fields.source}: hidden_act {fields.text('hidden_act')!r}; mamba2 here computes silu.")
    if not _is_unlimited(fields.values.get("time_step_limit")):
        raise UserError(f"{fields.source}: time_step_limit clamps the time step, which mamba2 here does not compute.")
    width = fields.integer("hidden_size", LIMITS["width"], 4096)
    heads = fields.integer("num_heads", LIMITS["heads"], 128)
    head_dim = fields.integer("head_dim", LIMITS["width"], 64)
    if fields.number("expand", 0.0, 1024.0, 2.0) * width != heads * head_dim:
        raise UserError(f"{fields.source}: expand times hidden_size must be num_heads times head_dim.")
    shape = StateShape(
        heads, head_dim, groups=fields.integer("n_groups", LIMITS["heads"], 8),
        states=fields.integer("state_size", MOST_STATES, 128), taps=fields.integer("conv_kernel", MOST_TAPS, 4),
    )  # fmt: skip
    vocabulary = fields.integer("vocab_size", LIMITS["vocabulary"], 32768)
    bos = fields.token_ids("bos_token_id", vocabulary)
    spec = _spec(
        name, shape, width, fields.integer("num_hidden_layers", LIMITS["layers"], 64), vocabulary,
        fields.integer("max_position_embeddings", LIMITS["context"], CONTEXT),
        fields.number("layer_norm_epsilon", 0.0, 1.0, 1e-5), fields.flag("tie_word_embeddings", False), fields.source,
    )  # fmt: skip
    return replace(
        spec, bos=bos[0] if bos else None, eos=fields.token_ids("eos_token_id", vocabulary),
        proj_bias=fields.flag("use_bias", False), conv_bias=fields.flag("use_conv_bias", True),
    )  # fmt: skip


def spec_from_gguf(fields: Fields, vocabulary: int, name: str, tied: bool) -> ModelSpec:
    """From the keys under "mamba2." that llama.cpp's converter writes."""
    width = fields.integer("mamba2.embedding_length", LIMITS["width"])
    inner = fields.integer("mamba2.ssm.inner_size", LIMITS["ffn"])
    heads = fields.integer("mamba2.ssm.time_step_rank", LIMITS["heads"])
    if inner % heads:
        raise UserError(f"{fields.source}: mamba2.ssm.inner_size {inner} is not a multiple of its {heads} heads.")
    shape = StateShape(
        heads, inner // heads, groups=fields.integer("mamba2.ssm.group_count", LIMITS["heads"], 1),
        states=fields.integer("mamba2.ssm.state_size", MOST_STATES),
        taps=fields.integer("mamba2.ssm.conv_kernel", MOST_TAPS),
    )  # fmt: skip
    return _spec(
        name, shape, width, fields.integer("mamba2.block_count", LIMITS["layers"]), vocabulary,
        fields.integer("mamba2.context_length", LIMITS["context"], CONTEXT),
        fields.number("mamba2.attention.layer_norm_rms_epsilon", 0.0, 1.0), tied, fields.source,
    )  # fmt: skip


def _spec(
    name: str, shape: StateShape, width: int, layers: int, vocabulary: int, context: int, eps: float, tied: bool,
    source: str,
) -> ModelSpec:  # fmt: skip
    if shape.heads % shape.groups:
        raise UserError(f"{source}: {shape.heads} heads cannot share {shape.groups} groups evenly.")
    return ModelSpec(
        family="mamba2", name=name, layers=layers, width=width, heads=shape.heads, kv_heads=shape.heads,
        head_dim=shape.head_dim, ffn=0, vocabulary=vocabulary, context=context, norm_eps=eps, rope=NO_ROPE, tied=tied,
        state=shape, conv_bias=True,
    )  # fmt: skip


def _is_unlimited(limit: object) -> bool:
    """Whether a time_step_limit clamps nothing: absent, or [0, infinity] as transformers 4 or 5 writes it."""
    if limit is None:
        return True
    infinities: tuple[object, ...] = (float("inf"), {"__float__": "Infinity"})
    return isinstance(limit, list) and len(limit) == 2 and limit[0] == 0 and limit[1] in infinities


def flatten_vectors(
    tensors: Mapping[str, StoredWeight], names: Mapping[str, str], layers: int
) -> Mapping[str, StoredWeight]:
    """Numbers a head and gains as [1, n], however the file folds them."""
    flat = {names["layer"].format(layer) + names[role] for layer in range(layers) for role in VECTORS}
    return {
        name: replace(weight, rows=1, columns=weight.rows * weight.columns) if name in flat else weight
        for name, weight in tensors.items()
    }


def negative_exponential(weight: StoredWeight) -> StoredWeight:
    """Hugging Face files hold the logarithm of what a state decays with; GGUF files the negative number itself."""
    plain = FORMATS.get("f32")
    if weight.data is None:
        return StoredWeight(weight.name, weight.rows, weight.columns, plain)
    stored = plain.pack((-np.exp(weight.unpack())).astype(np.float32))
    return StoredWeight(weight.name, weight.rows, weight.columns, plain, stored)

"""Specs from config.json and GGUF metadata: published numbers, and every field that can be wrong."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.models.catalogue import shape, shapes, source
from ridgeline.models.config import read_json, spec_from_config
from ridgeline.models.load import describe
from ridgeline.models.metadata import spec_from_gguf
from ridgeline.models.spec import Rope
from tests.formats.gguf_file import gguf, tiny

from .directory import CONFIG

# As the model cards and the index of each repository's safetensors say.
PARAMETERS = {
    "tinyllama-1.1b": 1_100_048_384, "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192, "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248, "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096, "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648, "qwen2.5-coder-0.5b": 494_032_768,
    "qwen2.5-coder-1.5b": 1_543_714_304, "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384, "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360, "qwen3-32b": 32_762_123_264,
    "gemma-3-270m": 268_098_176, "gemma-3-1b": 999_885_952, "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704, "qwen1.5-moe-a2.7b": 14_315_784_192, "qwen3-30b-a3b": 30_532_122_624,
    "mamba2-130m": 128_989_632, "mamba2-370m": 368_346_624, "mamba2-2.7b": 2_702_599_680,
    "mamba-codestral-7b-v0.1": 7_285_403_648,
    "mixture-64x2": 105_128_192, "mixture-128x4": 105_392_384,
}  # fmt: skip


@pytest.mark.parametrize("name", shapes())
def test_catalogue_shapes_have_the_published_number_of_parameters(name):
    described = describe(f"random:{name}")
    assert described.weights.parameters == PARAMETERS[name]
    assert described.weights.nbytes == 2 * PARAMETERS[name]  # bf16, as published
    assert all(weight.data is None for weight in described.weights)
    assert "/" in source(name)


def test_smollm2_in_numbers():
    spec = shape("smollm2-135m")
    assert (spec.layers, spec.width, spec.heads, spec.kv_heads, spec.head_dim) == (30, 576, 9, 3, 64)
    assert 2 * 2 * spec.layers * spec.kv_heads * spec.head_dim == 23_040  # KV bytes a token in bf16 (A8)


def spec(**changes):
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    return spec_from_config(config, "test", "config.json")


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
         "vocab_size", "max_position_embeddings", "head_dim")  # fmt: skip


@pytest.mark.parametrize("bad", [0, -1, 1.5, float("nan"), float("inf"), "64", True, [64], {}, 10**30])
@pytest.mark.parametrize("key", SIZES)
def test_sizes_out_of_range_are_named(key, bad):
    with pytest.raises(UserError, match=f"config.json: {key} is"):
        spec(**{key: bad})


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), "x", True, [1]])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_numbers_out_of_range_are_named(key, bad):
    with pytest.raises(UserError, match=key):
        spec(**{key: bad})


@pytest.mark.parametrize(
    "key", ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
)
def test_missing_fields_are_named(key):
    with pytest.raises(UserError, match=f"no {key}"):
        spec(**{key: None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma3"}, "supported: gemma3_text, llama, m"),
        ({"hidden_act": "relu"}, "relu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": float("nan")}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": "linear"}, "an object"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "factor"),
        ({"rope_scaling": {"type": "\x1b[2J\ud800" * 9000, "factor": 1.0}}, "rope type"),
        ({"num_key_value_heads": 3}, "evenly"),
        ({"hidden_size": 66}, "multiple"),
        ({"head_dim": 15}, "even"),
        ({"partial_rotary_factor": 0.0}, "rotary"),
        ({"eos_token_id": 128}, "token id below 128"),
        ({"eos_token_id": [1, -1]}, "token id below 128"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"model_type": "qwen3", "attention_bias": True}, "qwen3 family here has none"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "causal"),
        ({"model_type": "gemma3_text", "hidden_activation": "silly"}, "silly"),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"]}, "each of 2 layers"),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention", ["x"]]}, "each of 2 layers"),
    ],
)
def test_what_the_families_do_not_compute_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        spec(**changes)


def test_rope_of_both_generations_of_configurations():
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    old = spec(rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | llama3)
    new = spec(rope_theta=None, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | llama3)
    assert old.rope == new.rope and old.rope.scaling == ("llama3", 8.0, 1.0, 4.0, 32.0)
    assert spec(rope_scaling={"type": "linear", "factor": 2.0}).rope.scaling == ("linear", 2.0)
    assert spec(rope_scaling={"rope_type": "default"}).rope.scaling is None
    assert spec(partial_rotary_factor=0.5).rope.dim == 8


def test_windows():
    assert spec(model_type="mistral", sliding_window=16).windows == (16, 16)
    everything = CONFIG | {"model_type": "mistral", "sliding_window": None}
    assert spec_from_config(everything, "test", "config.json").windows == ()
    qwen = {"model_type": "qwen2", "sliding_window": 16, "max_window_layers": 1}
    assert spec(model_type="mistral").windows == (4096, 4096)  # as transformers reads a configuration without the field
    assert spec(**qwen).windows == () and spec(**qwen, use_sliding_window=True).windows == (0, 16)


def test_rope_factors_are_those_of_llama3():
    """A GGUF file of Llama 3.1 stores what config.json describes."""
    plain, scaled = Rope(64, 5e5, 16), Rope(64, 5e5, 16, scaling=("llama3", 8.0, 1.0, 4.0, 8.0))
    angles = [np.arctan2(table[1][1], table[0][1]) for table in (plain.tables(), scaled.tables())]
    factors = tuple(float(x) for x in angles[0] / angles[1])
    stored = Rope(64, 5e5, 16, scaling=("factors", *factors))
    assert np.allclose(stored.tables()[0], scaled.tables()[0], atol=1e-5)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"hidden_size": NaN}', '{"a": Infinity}', "[" * 100_000, "\xff"])
def test_files_that_are_no_configuration(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json"):
        read_json(path)
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path / "absent.json")


def gguf_spec(tmp_path, **changes):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(*tiny(**changes)))
    return describe(str(path)).spec


def test_spec_from_gguf(tmp_path):
    spec = gguf_spec(tmp_path, **{"llama.rope.freq_base": 5e5, "tokenizer.ggml.eos_token_id": 2})
    assert (spec.layers, spec.width, spec.heads, spec.kv_heads, spec.head_dim, spec.ffn) == (2, 8, 2, 1, 4, 16)
    assert spec.tied and spec.vocabulary == 4 and spec.context == 64 and spec.eos == (2,) and spec.rope.interleaved


def test_gemma3_from_gguf(tmp_path):
    """Windows by pattern, two ropes of which the global one is scaled, and what the family always has."""
    numbers, _ = tiny()
    numbers = {key.replace("llama.", "gemma3."): value for key, value in numbers.items()}
    numbers |= {
        "general.architecture": "gemma3", "gemma3.attention.sliding_window": 16, "gemma3.rope.freq_base": 1e6,
        "gemma3.attention.sliding_window_pattern": 2, "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
    }  # fmt: skip
    spec = spec_from_gguf(numbers, {"token_embd.weight": SimpleNamespace(rows=4)}, "test", "test.gguf")
    assert spec.windows == (16, 0) and spec.post_norms and spec.qk_norm and spec.activation == "gelu_tanh"
    assert (spec.rope_of(1).base, spec.rope_of(1).scaling) == (1e6, ("linear", 8.0))
    assert (spec.rope_of(0).base, spec.rope_of(0).scaling) == (1e4, None)
    assert not spec.rope.interleaved and spec.query_scale == 1 / spec.head_dim**0.5
    listed = numbers | {"gemma3.attention.sliding_window_pattern": np.array([False, True])}
    assert spec_from_gguf(listed, {"token_embd.weight": SimpleNamespace(rows=4)}, "t", "t.gguf").windows == (0, 16)
    with pytest.raises(UserError, match="each of 2 layers"):
        wrong = numbers | {"gemma3.attention.sliding_window_pattern": np.array([True])}
        spec_from_gguf(wrong, {"token_embd.weight": SimpleNamespace(rows=4)}, "t", "t.gguf")
    with pytest.raises(UserError, match="caps its logits"):
        capped = numbers | {"gemma3.final_logit_softcapping": 30.0}
        spec_from_gguf(capped, {"token_embd.weight": SimpleNamespace(rows=4)}, "t", "t.gguf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general.architecture": "bloom"}, "supported architectures: gemma3, llama, m"),
        ({"general.architecture": None}, r"general\.architecture"),
        ({"llama.block_count": None}, "llama.block_count"),
        ({"llama.block_count": 0}, "llama.block_count"),
        ({"llama.block_count": 3}, r"lacks tensor blk\.2"),
        ({"llama.block_count": 1}, r"does not have: blk\.1"),
        ({"llama.embedding_length": 16}, r"token_embd.weight is \[4, 8\]; .* \[4, 16\]"),
        ({"llama.feed_forward_length": 32}, "ffn_gate.weight"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon"),
        ({"llama.rope.freq_base": float("inf")}, "freq_base"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.expert_count": 8}, "expert_used_count"),
        ({"tokenizer.ggml.eos_token_id": 4}, "token id below 4"),
        ({"llama.attention.head_count": np.array([2, 2], np.int32)}, "head_count"),
        ({"llama.expert_count": np.array([8, 8], np.int32)}, "expert"),
        ({"llama.attn_logit_softcapping": np.array([1.0, 1.0], np.float32)}, "caps its logits"),
        ({"tokenizer.ggml.model": np.array([1, 2], np.int32)}, "tokenizer.ggml.model"),
    ],
)
def test_wrong_gguf_metadata_is_named(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        gguf_spec(tmp_path, **changes)


def test_a_copy_of_catalogue_entry_is_read_as_a_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    described = describe(f"random:{tmp_path}/config.json", weights="q8_0")
    assert described.random and described.spec.width == 64
    assert described.weights.layers[0].q.format.name == "q8_0"
    assert described.weights.final_norm.format.name == "f32"

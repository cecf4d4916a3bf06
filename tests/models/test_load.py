"""Loading: names, paths and shapes; conversion; weights by role; the recorded Program."""

from __future__ import annotations

import json
import time

import msgspec
import numpy as np
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.catalogue import shapes
from ridgeline.models.load import WEIGHTS, describe, load, record
from ridgeline.models.pull import TABLE
from ridgeline.ops.kv import Reach
from tests.formats.gguf_file import gguf, tiny
from tests.text.small import small_tokenizer
from tests.text.test_tokenizer import write_directory

from .directory import CONFIG, tensors, write

PARTS = [
    "attend_norm",
    "qkv",
    "rope",
    "attend",
    "o",
    "attend_add",
    "mlp_norm",
    "gate_up",
    "activation",
    "down",
    "mlp_add",
]
BF16 = STORAGES.get("bf16")


def test_a_directory_without_copies(tmp_path):
    loaded = load(str(write(tmp_path / "m")))
    expected = tensors(CONFIG)
    assert np.array_equal(loaded.weights.layers[1].down.unpack(), expected["model.layers.1.mlp.down_proj.weight"])
    assert np.array_equal(loaded.weights.head.unpack(), expected["lm_head.weight"])
    assert all(not weight.data.flags.owndata for weight in loaded.weights)
    assert loaded.weights.parameters == sum(t.size for t in expected.values())
    assert loaded.source == tmp_path / "m" and loaded.file_bytes > loaded.weights.nbytes
    assert loaded.tokenizer() is None and loaded.chat_template is None and not loaded.random
    assert loaded.spec.eos == (2,) and not loaded.spec.rope.interleaved


def test_generation_config_names_more_ends_of_text(tmp_path):
    directory = write(tmp_path / "m")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.6}))
    assert load(str(directory)).spec.eos == (2, 7)


def test_tokenizer_and_template_of_a_directory(tmp_path):
    directory = write(tmp_path / "m", {"vocab_size": 264})
    write_directory(directory, small_tokenizer(), None, {"bos_token": "<|begin|>", "eos_token": "<|end|>"})
    loaded = load(str(directory))
    assert loaded.tokenizer() is loaded.tokenizer() and loaded.tokenizer().eos == (2,)
    assert loaded.chat_template is None
    config = {"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": True}))
    assert load(str(directory)).chat_template == "b" and load(str(directory)).spec.add_bos
    (directory / "chat_template.jinja").write_text("c")
    assert load(str(directory)).chat_template == "c"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_program_of_a_family(tmp_path, family, tied):
    loaded = load(str(write(tmp_path / "m", {"model_type": family, "tie_word_embeddings": tied})))
    program = record(loaded, BF16)
    assert [line.name for line in program] == [
        "embed", *(f"layers.{i}.{part}" for i in range(2) for part in PARTS), "gather", "final_norm", "head", "sample",
    ]  # fmt: skip
    assert sum(weight.nbytes for weight in program.weights) == loaded.weights.nbytes
    assert {id(w) for w in program.weights} == {id(w) for w in loaded.weights}
    assert (program.lines[-2].weights[0] is loaded.weights.embed) == tied
    qkv = program.lines[2]
    assert len(qkv.weights) == (6 if family == "qwen2" else 3) and qkv.output.width == 64 + 2 * 32
    assert program.cuts == (11, 22)


def test_mistral_reads_through_its_window():
    assert record(describe("random:mistral-7b-v0.1"), BF16).reaches == (Reach(4096),)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda t: {k: v for k, v in t.items() if "1.mlp.up" not in k},
            r"lacks tensor model.layers.1.mlp.up_proj.weight",
        ),
        (lambda t: t | {"model.norm.weight": np.ones(63, np.float32)}, r"norm.weight is \[1, 63\].*\[1, 64\]"),
        (lambda t: t | {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}, "does not have: .*q_norm"),
        (lambda t: t | {f"extra.{i}": np.ones(1, np.float32) for i in range(20)}, "and 12 more"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, edit, words):
    with pytest.raises(UserError, match=words):
        load(str(write(tmp_path / "m", edit=edit)))


def test_derived_tables_and_copies_of_a_tied_head_are_dropped(tmp_path):
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    loaded = load(str(write(tmp_path / "m", {"tie_word_embeddings": True}, lambda t: t | table)))
    assert loaded.weights.head is loaded.weights.embed


@pytest.mark.parametrize("weights", WEIGHTS[1:])
def test_conversion_keeps_the_numbers(tmp_path, weights):
    directory = str(write(tmp_path / "m"))
    exact, converted = load(directory), load(directory, weights=weights)
    described = describe(directory, weights=weights)
    assert described.weights.nbytes == converted.weights.nbytes
    assert [w.format.name for w in described.weights] == [w.format.name for w in converted.weights]
    most = {"f32": 0, "f16": 3e-4, "bf16": 2e-3, "q8_0": 3e-3, "q4_1": 4e-2, "q4_0": 4e-2, "q5_0": 2e-2}
    most = (most | {"int8": 2e-3, "int4": 5e-2, "fp8": 2e-2})[weights]
    for a, b in zip(exact.weights, converted.weights, strict=True):
        assert np.abs(a.unpack() - b.unpack()).max() <= most
    assert converted.weights.final_norm.format.name == "f32"
    assert converted.weights.head.format.name == (
        "q8_0" if weights in ("q4_1", "q4_0", "q5_0") else "int8" if weights == "int4" else weights
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("tied", [True, False])
def test_random_weights(tmp_path, weights, tied):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG | {"model_type": "qwen2", "vocab_size": 4096, "tie_word_embeddings": tied}))
    model = f"random:{path}"
    loaded, described = load(model, weights=weights), describe(model, weights=weights)
    assert loaded.random and loaded.tokenizer() is None and loaded.source is None
    for made, said in zip(loaded.weights, described.weights, strict=True):
        assert made.format is said.format and made.data.size == said.nbytes and said.data is None
        assert made.name == said.name
    embed = loaded.weights.embed.unpack()
    assert abs(embed.std() - 0.02) < 1e-3 and abs(embed.mean()) < 1e-3
    assert abs(loaded.weights.layers[0].attend_norm.unpack().mean() - 1) < 0.05
    again, other = load(model, weights=weights), load(model, weights=weights, seed=1)
    assert np.array_equal(again.weights.embed.data, loaded.weights.embed.data)
    assert not np.array_equal(other.weights.embed.data, loaded.weights.embed.data)
    assert not np.array_equal(loaded.weights.layers[0].q.data, loaded.weights.layers[1].q.data)


def test_describing_70b_is_instant():
    begin = time.perf_counter()
    program = record(describe("random:llama-2-70b", weights="q4_1"), BF16)
    assert sum(weight.nbytes for weight in program.weights) > 40e9
    assert time.perf_counter() - begin < 1


def test_a_gguf_file(tmp_path):
    metadata, stored = tiny(**{"tokenizer.chat_template": "{{ messages }}"})
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(metadata, stored))
    loaded = load(str(path))
    assert loaded.spec.name == "tiny" and loaded.tokenizer() is None and loaded.chat_template == "{{ messages }}"
    assert loaded.weights.head is loaded.weights.embed and loaded.file_bytes == path.stat().st_size
    factors = [*stored, ("rope_freqs.weight", (2,), 0, np.array([1, 8], np.float32).tobytes())]
    path.write_bytes(gguf(metadata, factors))
    assert load(str(path)).spec.rope.scaling == ("factors", 1.0, 8.0)
    path.write_bytes(gguf(metadata, [*stored, ("rope_freqs.weight", (2,), 0, np.zeros(2, np.float32).tobytes())]))
    with pytest.raises(UserError, match="rope_freqs"):
        load(str(path))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smolm2-135m", "smollm2-135m"),
        ("random:lama-2-7b", "llama-2-7b"),
        ("random:", "name of a model"),
        ("", "name of a model"),
        ("x\0y", "name of a model"),
        ("x" * 5000, "name of a model"),
        ("llama-2-7b", "random:llama-2-7b"),
        ("/no/such/model.gguf", "No such file"),
        ("/no/such/directory", "unknown model"),
        ("random:/no/such/config.json", "cannot read"),
        ("~nobody-of-that-name/x", "home directory"),
        ("zzzzzzzz", "Known: "),
    ],
)
def test_names_that_lead_nowhere(model, words):
    with pytest.raises(UserError, match=words):
        load(model)


def test_a_pulled_architecture_without_a_family_is_refused_before_it_is_fetched(monkeypatch):
    from ridgeline.models import load as module

    entry = msgspec.structs.replace(module.TABLE["gemma-3-270m"], architecture="gemma9")
    monkeypatch.setattr(module, "TABLE", {"gemma-9": entry})
    with pytest.raises(UserError, match=r"'gemma9' model.*architectures: llama, mistral"):
        load("gemma-9")


def test_unknown_weights_are_refused():
    with pytest.raises(UserError, match="q4_1"):
        load("random:smollm2-135m", weights="int3")


def test_a_directory_without_weights(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match="holds neither"):
        load(str(tmp_path))


@pytest.mark.parametrize("template", [[{"name": ["x"], "template": "a"}], [{"name": "default"}], [1], {"a": 1}, 5])
def test_a_list_of_templates_that_is_none_gives_no_template(tmp_path, template):
    write(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert describe(str(tmp_path / "model")).chat_template is None


def test_every_name_is_known_once():
    assert len(shapes()) >= 15 and "smollm2-135m" in TABLE

"""Quantised directories as models: every layout runs on its own bits, and layouts that hold the same codes agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, load, record
from ridgeline.run.bind import bind
from ridgeline.state.request import Request

from ..engine.tiny import TinyEngine
from ..formats.layouts import File, meaning, writer
from .directory import CONFIG, tensors

tool = writer()
TINY = CONFIG | {"hidden_size": 96, "intermediate_size": 160, "vocab_size": 320, "max_position_embeddings": 512}
MOE = TINY | {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
SPAN = 64  # the last group of 96 and of 160 columns is half a group
PROMPTS = ([5, 9, 200, 7, 31, 8], list(range(40, 75)))
ALIKE = {  # layouts that hold the same codes, scales and zeros
    "with zeros": ("gptq", "gptq_v2", "awq", "ct-int4"),
    "symmetric": ("gptq-sym", "gptq_v2-sym", "ct-int4-sym"),
    "eight bits": ("ct-int8", "ct-pack8"),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, weights = tmp_path_factory.mktemp("quantised"), tensors(TINY)
    return {name: tool.write(root / name, TINY, weights, name, SPAN) for name in tool.LAYOUTS}


def answers(directory: Path, **options: Any) -> dict[str, tuple[int, ...]]:
    engine = TinyEngine(str(directory), **options)
    found = engine.run(Request(str(i), tuple(prompt), 24) for i, prompt in enumerate(PROMPTS))
    engine.engine.close()
    return found


@pytest.mark.parametrize("layout", tool.LAYOUTS)
def test_every_layout_keeps_its_own_bits(directories, layout):
    """Resident bytes are the bytes of codes, scales and zeros in the file, and of its plain tensors."""
    file = File(directories[layout] / "model.safetensors")
    linears = file.nbytes(".qweight", ".scales", ".weight_packed", ".weight_scale", "_proj.weight")
    zeros = file.nbytes(".qzeros", ".weight_zero_point")
    is_symmetric = "sym" in layout
    plain = file.nbytes("embed_tokens.weight", "lm_head.weight") + 2 * file.nbytes("norm.weight")  # gains are widened
    engine = TinyEngine(str(directories[layout]))
    resident = engine.engine.facts.resident_weight_bytes
    engine.engine.close()
    groups = [-(-columns // SPAN) for columns in (96, 96, 96, 96, 96, 96, 160)]
    rows = (96, 48, 48, 96, 160, 160, 96)
    fours = zeros > 0 and layout != "gptq-8bit" and not is_symmetric
    half_bytes = sum(row for row, group in zip(rows, groups, strict=True) if group % 2) // 2 * 2 * fours
    assert resident == linears + plain + half_bytes + (0 if is_symmetric else zeros)
    assert resident < engine.engine.facts.file_bytes
    loaded = load(str(directories[layout]))
    assert bind(record(loaded, STORAGES.get("bf16"))).is_native
    assert describe(str(directories[layout])).weights.nbytes == loaded.weights.nbytes
    assert loaded.weights.nbytes == resident - file.nbytes("norm.weight")


@pytest.mark.parametrize("layout", tool.LAYOUTS)
def test_weights_are_the_layouts_own_arithmetic(directories, layout):
    loaded = load(str(directories[layout]))
    for layer, role, module, shape in (
        (0, "k", "self_attn.k_proj", (48, 96)), (1, "down", "mlp.down_proj", (96, 160)),
    ):  # fmt: skip
        exact = meaning(directories[layout], f"model.layers.{layer}.{module}", *shape).astype(np.float32)
        assert np.array_equal(getattr(loaded.weights.layers[layer], role).unpack(), exact)


@pytest.mark.parametrize("alike", ALIKE)
def test_layouts_of_the_same_codes_give_the_same_tokens(directories, alike):
    first, *others = (answers(directories[name]) for name in ALIKE[alike])
    assert all(len(ids) == 24 for ids in first.values()) and all(other == first for other in others)


@pytest.mark.parametrize("layout", tool.LAYOUTS)
def test_native_bits_and_widened_weights_agree(directories, layout):
    """Beside keys and values in eight bits, a guesser, and in another batch: promise 1 as on other formats."""
    plain = answers(directories[layout], kv="int8")
    assert answers(directories[layout], kv="int8", spec="ngram:k=3", step_tokens=16, max_sequences=1) == plain
    widened = answers(directories[layout], kv="int8", weights="f32")
    same = [a == b for name in plain for a, b in zip(plain[name], widened[name], strict=True)]
    assert same[0] and sum(same) > len(same) // 3  # activations are rounded beside integers: later tokens may part


@pytest.mark.parametrize("layout", ["gptq-sym", "awq", "ct-int4", "ct-int8", "ct-fp8"])
def test_through_the_python_face(directories, layout):
    with LLM(str(directories[layout]), kv="int8", context=128, max_sequences=2, threads=1) as llm:
        made = [answer.tokens for answer in llm.generate(PROMPTS, max_tokens=8, ignore_stop=True)]
        assert bool(llm.notes) == (layout in ("ct-int8", "ct-fp8"))
    assert made == [ids[:8] for ids in answers(directories[layout], kv="int8", context=128).values()]


def test_what_was_read_otherwise_than_it_says_is_noted(directories, tmp_path):
    config = json.loads((directories["gptq_v2-sym"] / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").hardlink_to(directories["gptq_v2-sym"] / "model.safetensors")
    assert "read as gptq_v2" in describe(str(tmp_path)).notes[0]
    assert describe(str(directories["gptq_v2-sym"])).notes == ()


def test_experts_may_be_quantised(tmp_path):
    weights = {}
    for name, values in tensors(TINY).items():
        if ".mlp." not in name:
            weights[name] = values
            continue
        stem, role = name.split(".mlp.")
        for expert in range(4):
            weights[f"{stem}.mlp.experts.{expert}.{role}"] = np.roll(values, expert)
    weights |= {f"model.layers.{i}.mlp.gate.weight": np.eye(4, 96, dtype=np.float32) for i in range(2)}
    found = [
        answers(tool.write(tmp_path / name, MOE | {"num_experts": 4}, weights, name, SPAN))
        for name in ("gptq", "awq", "ct-int4")
    ]
    assert found[0] == found[1] == found[2]


def test_shards_biases_that_are_empty_and_extra_heads(directories, tmp_path):
    config = json.loads((directories["gptq"] / "config.json").read_text())
    whole = load_file(directories["gptq"] / "model.safetensors")
    whole |= {name.replace("qweight", "bias"): np.zeros(len(array[0]), np.float16)
              for name, array in whole.items() if name.endswith("qweight")}  # fmt: skip
    names = sorted(whole)
    save_file({name: whole[name] for name in names[::2]}, tmp_path / "a.safetensors")
    save_file({name: whole[name] for name in names[1::2]}, tmp_path / "b.safetensors")
    places = {name: "ab"[i % 2] + ".safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert answers(tmp_path) == answers(directories["gptq"])
    whole["model.layers.0.mlp.up_proj.bias"][3] = 1
    save_file({name: whole[name] for name in names}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")})
    )
    with pytest.raises(UserError, match=r"does not have: model\.layers\.0\.mlp\.up_proj\.bias"):
        load(str(tmp_path))
    head = {name.replace("model.layers.0.mlp.up_proj", "lm_head"): array for name, array in whole.items()
            if ".0.mlp.up_proj." in name and "bias" not in name}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    kept = {name: array for name, array in whole.items() if not name.endswith((".bias", "lm_head.weight"))}
    save_file(kept | head, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="logits' matrix quantised"):
        load(str(tmp_path))


def test_random_weights_follow_no_layout(directories):
    with pytest.raises(UserError, match="quantization_config is set, which random weights do not follow"):
        describe(f"random:{directories['awq'] / 'config.json'}")

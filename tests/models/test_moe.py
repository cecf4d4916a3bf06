"""Mixtures of experts: files of every layout give the same stacks, and the same logits and ids as transformers (K8)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ridgeline.formats.format import FORMATS
from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.config import spec_from_config
from ridgeline.models.load import describe, load, record
from ridgeline.models.stacks import stacked
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.experts import distinct
from ridgeline.run.count import by_part
from ridgeline.state.request import Request
from tests.engine.tiny import TinyEngine
from tests.formats.gguf_file import TYPES, gguf

from .directory import CONFIG, tensors
from .test_families import IDS, logits

MIXTRAL = CONFIG | {
    "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "architectures": ["MixtralForCausalLM"],
}  # fmt: skip
QWEN3 = CONFIG | {
    "model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "head_dim": 32,
    "norm_topk_prob": True, "architectures": ["Qwen3MoeForCausalLM"],
}  # fmt: skip
QWEN2 = CONFIG | {
    "model_type": "qwen2_moe", "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 80, "architectures": ["Qwen2MoeForCausalLM"],
}  # fmt: skip
CASES = {
    "mixtral": MIXTRAL,
    "mixtral with a window": MIXTRAL | {"sliding_window": 5},
    "mixtral, all experts": MIXTRAL | {"num_experts_per_tok": 4, "tie_word_embeddings": True},
    "qwen3_moe": QWEN3,
    "qwen3_moe, weights as they are": QWEN3 | {"norm_topk_prob": False},
    "qwen3_moe, one expert": QWEN3 | {"num_experts_per_tok": 1},
    "qwen2_moe": QWEN2,
    "qwen2_moe, renormalised": QWEN2 | {"norm_topk_prob": True},
}


def moe_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """As Hugging Face files name them: one tensor an expert."""
    dense = {"mixtral": "llama", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}[config["model_type"]]
    made = {name: t for name, t in tensors(config | {"model_type": dense}).items() if ".mlp." not in name}
    generator = np.random.default_rng(9)

    def normal(*shape: int) -> np.ndarray:
        return (0.2 * generator.standard_normal(shape)).astype(np.float32)

    width = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        if config["model_type"] == "mixtral":
            at, roles = f"model.layers.{layer}.block_sparse_moe.", ("w1", "w3", "w2")
            experts, ffn = config["num_local_experts"], config["intermediate_size"]
        else:
            at, roles = f"model.layers.{layer}.mlp.", ("gate_proj", "up_proj", "down_proj")
            experts, ffn = config["num_experts"], config["moe_intermediate_size"]
        made[at + "gate.weight"] = 3 * normal(experts, width)
        for expert in range(experts):
            for role, shape in zip(roles, ((ffn, width), (ffn, width), (width, ffn)), strict=True):
                made[f"{at}experts.{expert}.{role}.weight"] = normal(*shape)
        if config["model_type"] == "qwen2_moe":
            shared = config["shared_expert_intermediate_size"]
            for role, shape in zip(roles, ((shared, width), (shared, width), (width, shared)), strict=True):
                made[f"{at}shared_expert.{role}.weight"] = normal(*shape)
            made[at + "shared_expert_gate.weight"] = normal(1, width)
    return made


def write(directory: Path, config: dict[str, Any], edit: Any = lambda tensors: tensors) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(edit(moe_tensors(config)), directory / "model.safetensors")
    return str(directory)


@pytest.mark.torch
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_logits_and_greedy_ids_equal_transformers(tmp_path, config):
    import torch
    from transformers import AutoModelForCausalLM

    directory = write(tmp_path / "m", config)
    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = oracle(torch.tensor([IDS])).logits[0].numpy()
        seen = torch.ones(1, len(IDS), dtype=torch.long)  # else it takes token 0 for padding
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        ids = oracle.generate(torch.tensor([IDS]), attention_mask=seen, **options)
    found = logits(record(load(directory), STORAGES.get("f32")), IDS)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    engine = TinyEngine(directory, kv_bytes=1 << 20, kv="f32", context=48)
    got = engine.run([Request("a", tuple(IDS), 8, ignore_stop=True)])["a"]
    engine.engine.close()
    assert list(got) == ids[0, len(IDS) :].tolist()


@pytest.mark.torch
@pytest.mark.parametrize("config", [MIXTRAL, QWEN3, QWEN2], ids=["mixtral", "qwen3_moe", "qwen2_moe"])
def test_what_transformers_saves_is_read(tmp_path, config):
    from transformers import AutoModelForCausalLM

    directory = write(tmp_path / "m", config)
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / "saved")
    for ours, theirs in zip(load(directory).weights, load(str(tmp_path / "saved")).weights, strict=True):
        assert np.array_equal(ours.unpack(), theirs.unpack())


def test_gate_and_up_in_one_tensor_are_taken_apart():
    gate, up, down = (np.random.default_rng(i).standard_normal(s, np.float32) for i, s in
                      enumerate(((3, 4, 8), (3, 4, 8), (3, 8, 4))))  # fmt: skip
    plain = FORMATS.get("f32")

    def weight(name: str, values: np.ndarray) -> StoredWeight:
        values = values.reshape(-1, values.shape[-1])
        return StoredWeight(name, *values.shape, plain, plain.pack(values))

    at = "model.layers.0.mlp.experts."
    fused = {
        at + "gate_up_proj": weight("gate_up", np.concatenate([gate, up], 1)), at + "down_proj": weight("down", down),
    }  # fmt: skip
    found = stacked(fused, 3, "here")
    for role, values in (("gate", gate), ("up", up), ("down", down)):
        assert np.array_equal(found[at + role].unpack(), values.reshape(-1, values.shape[-1]))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if "0.block_sparse_moe.experts.2.w1" not in k}, "does not have experts"),
        (lambda t: {k: v for k, v in t.items() if "w2" not in k}, "lacks tensor model.layers.0.mlp.experts.down"),
        (
            lambda t: t | {"model.layers.1.block_sparse_moe.experts.0.w2.weight": np.ones((64, 8), np.float32)},
            "differ in shape",
        ),
        (lambda t: t | {"model.layers.0.block_sparse_moe.experts.0.w9.weight": np.ones(2, np.float32)}, "experts.w9"),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit_are_named(tmp_path, edit, words):
    with pytest.raises(UserError, match=words):
        load(write(tmp_path / "m", MIXTRAL, edit))


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (QWEN3, {"decoder_sparse_step": 2}, "some layers have no experts"),
        (QWEN3, {"mlp_only_layers": [0]}, "some layers have no experts"),
        (QWEN2, {"use_sliding_window": True}, "use_sliding_window"),
        (MIXTRAL, {"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        (MIXTRAL, {"num_local_experts": 5000}, "num_local_experts is 5000"),
    ],
)
def test_what_the_families_do_not_compute_is_refused(config, changes, words):
    with pytest.raises(UserError, match=words):
        spec_from_config(config | changes, "m", "here")


ROLES = {
    "attend_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "mlp_norm": "ffn_norm",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "router": "ffn_gate_inp", "expert_gate": "ffn_gate_exps",
    "expert_up": "ffn_up_exps", "expert_down": "ffn_down_exps", "gate": "ffn_gate_shexp", "up": "ffn_up_shexp",
    "down": "ffn_down_shexp", "shared_gate": "ffn_gate_inp_shexp",
}  # fmt: skip


def as_gguf(loaded: Any, architecture: str, extra: dict[str, Any], each: bool) -> bytes:
    """A GGUF file of loaded weights; each: one tensor an expert, as old files had it."""
    spec, experts = loaded.spec, loaded.spec.experts
    metadata = {
        "general.architecture": architecture, f"{architecture}.block_count": spec.layers,
        f"{architecture}.context_length": spec.context, f"{architecture}.embedding_length": spec.width,
        f"{architecture}.feed_forward_length": spec.ffn, f"{architecture}.attention.head_count": spec.heads,
        f"{architecture}.attention.head_count_kv": spec.kv_heads,
        f"{architecture}.attention.key_length": spec.head_dim, f"{architecture}.attention.value_length": spec.head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": spec.norm_eps,
        f"{architecture}.expert_count": experts.routing.experts,
        f"{architecture}.expert_used_count": experts.routing.chosen,
    }  # fmt: skip
    stored = []

    def put(name: str, values: np.ndarray) -> None:
        shape = values.shape[::-1] if values.shape[0] > 1 else values.shape[1:]
        stored.append((name, shape, TYPES["f32"], np.ascontiguousarray(values).tobytes()))

    put("token_embd.weight", loaded.weights.embed.unpack())
    put("output_norm.weight", loaded.weights.final_norm.unpack())
    put("output.weight", loaded.weights.head.unpack())
    for index, layer in enumerate(loaded.weights.layers):
        for role, name in ROLES.items():
            weight = getattr(layer, role)
            if weight is None:
                continue
            values = weight.unpack()
            if role.startswith("expert_"):
                values = values.reshape(experts.routing.experts, -1, weight.columns)
                if each:
                    for expert, one in enumerate(values):
                        put(f"blk.{index}.{name.removesuffix('_exps')}.{expert}.weight", one)
                    continue
            put(f"blk.{index}.{name}.weight", values)
        for role in "qkv":
            if (bias := getattr(layer, f"{role}_bias")) is not None:
                put(f"blk.{index}.attn_{role}.bias", bias.unpack())
    return gguf(metadata | {f"{architecture}.{key}": value for key, value in extra.items()}, stored)


@pytest.mark.parametrize(
    ("config", "architecture", "extra", "each"),
    [
        (MIXTRAL, "llama", {}, False),
        (MIXTRAL, "llama", {}, True),
        (QWEN3, "qwen3moe", {"expert_feed_forward_length": 48}, False),
        (QWEN2, "qwen2moe", {"expert_feed_forward_length": 48, "expert_shared_feed_forward_length": 80}, False),
    ],
    ids=["mixtral", "mixtral, a tensor an expert", "qwen3moe", "qwen2moe"],
)
def test_gguf_files_hold_the_same_model(tmp_path, config, architecture, extra, each):
    loaded = load(write(tmp_path / "m", config))
    path = tmp_path / "model.gguf"
    path.write_bytes(as_gguf(loaded, architecture, extra, each))
    again = load(str(path))
    assert again.spec.family == loaded.spec.family and again.spec.experts == loaded.spec.experts
    assert again.spec.rope.interleaved == (architecture == "llama")
    assert again.spec.qk_norm == loaded.spec.qk_norm and again.spec.qkv_bias == loaded.spec.qkv_bias
    for ours, theirs in zip(loaded.weights, again.weights, strict=True):
        assert np.array_equal(ours.unpack(), theirs.unpack())


@pytest.mark.parametrize("weights", ["f32", "bf16", "q8_0", "q4_1"])
def test_routers_are_never_rounded(tmp_path, weights):
    config = MIXTRAL | {"hidden_size": 64, "intermediate_size": 64}
    layer = load(write(tmp_path / "m", config), weights=weights).weights.layers[0]
    assert layer.router.format.name == "f32" and layer.expert_down.format.name == weights
    assert layer.expert_down.nbytes == 4 * FORMATS.get(weights).nbytes(64, 64)


def test_cost_follows_distinct_experts():
    """Weights of E (1 - (1 - k/E)^B) experts (A16); FLOPs by the rows sent; counted experts go before expected ones."""
    program = record(describe("random:mixtral-8x7b"), STORAGES.get("bf16"))
    batch = np.array([1, 2, 8, 64])
    shape = BatchShape(batch, batch, batch, batch, batch)
    parts = by_part(program, shape)
    one = 2 * 3 * 4096 * 14336 * 32  # bytes of one expert in every layer
    expected = 8 * (1 - 0.75**batch)
    np.testing.assert_allclose(parts["experts"].weight_bytes, expected * one)
    assert expected[0] == 2 and expected[2] == pytest.approx(7.2, rel=1e-2)
    np.testing.assert_allclose(parts["experts"].flops, 32 * batch * 2 * (2 * 3 * 4096 * 14336 + 5 * 14336))
    counted = by_part(program, BatchShape(8, 8, 8, 8, 8, experts=5.5))["experts"]
    assert counted.weight_bytes == 5.5 * one
    assert distinct(BatchShape(0, 0, 0, 0, 0), 8, 8) == 0


def test_an_exact_split_keeps_every_bit(tmp_path):
    from .directory import write as write_dense

    directory = str(write_dense(tmp_path / "m", {"intermediate_size": 64}))
    dense, split = load(directory, weights="q8_0"), load(f"moe2:{directory}", weights="q8_0")
    assert split.spec.family == "mixtral" and split.spec.experts.ffn == 32
    for a, b in zip(dense.weights.layers, split.weights.layers, strict=True):
        assert np.array_equal(a.gate.unpack(), b.expert_gate.unpack())
        assert np.array_equal(a.down.unpack(), np.concatenate(np.split(b.expert_down.unpack(), 2), 1))
        assert not b.router.unpack().any()
    described = describe(f"moe2:{directory}", weights="q8_0")
    assert described.weights.nbytes == split.weights.nbytes and described.weights.layers[0].router.data is None


@pytest.mark.parametrize(("name", "words"), [("moe3", "power of two"), ("moe64", "power of two"), ("moe0", "power")])
def test_splits_that_would_not_be_exact_are_refused(tmp_path, name, words):
    from .directory import write as write_dense

    with pytest.raises(UserError, match=words):
        load(f"{name}:{write_dense(tmp_path / 'm')}")  # 96 wide
    with pytest.raises(UserError, match="cut through"):
        describe(f"moe8:random:{tmp_path / 'm' / 'config.json'}", weights="q4_1")


@pytest.mark.model
def test_smollm2_as_eight_experts_gives_the_same_ids():
    """All experts on, weight 1 each: the dense model, on its own bits (q4_1: 192 columns are six groups of 32)."""
    requests = [
        Request(f"r{i}", ids, 12, ignore_stop=True) for i, ids in enumerate(((504, 3575, 282, 4649, 314), (1604,)))
    ]
    answers = []
    for name in ("smollm2-135m", "moe8:smollm2-135m"):
        engine = TinyEngine(name, context=64, activations="int16")  # outliers are those of a row: an expert has its own
        assert engine.engine.facts.family == ("llama" if name.startswith("s") else "mixtral")
        answers.append(engine.run(requests))
        engine.engine.close()
    assert answers[0] == answers[1]

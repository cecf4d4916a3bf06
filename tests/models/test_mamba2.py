"""Mamba-2 against transformers: whole, in its cached steps, in chunks of ours; config.json and GGUF; hostile fields."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.memory.storage.recurrent import RecurrentStorage
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.config import read_json, spec_from_config
from ridgeline.models.load import describe, load, record
from ridgeline.models.weights import GGUF_MIXER_NAMES
from ridgeline.state.request import Request, Sampling
from tests.engine.tiny import TinyEngine
from tests.formats.gguf_file import gguf

IDS = [1, 17, 99, 3, 3, 64, 127, 0, 5, 42, 7, 7, 7, 100, 2, 31, 8, 19]
LENGTHS = ((1, 5), (3, 31), (5, 17), (9, 64))
CONFIG = {
    "model_type": "mamba2", "hidden_size": 48, "num_hidden_layers": 3, "num_heads": 6, "head_dim": 16, "state_size": 12,
    "n_groups": 1, "expand": 2, "conv_kernel": 4, "vocab_size": 128, "layer_norm_epsilon": 1e-5, "chunk_size": 8,
    "tie_word_embeddings": False, "use_bias": False, "use_conv_bias": True, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
CASES = {
    "one group": {},
    "groups, tied": {"n_groups": 3, "tie_word_embeddings": True},
    "biases everywhere": {"n_groups": 2, "use_bias": True},
    "no bias of the convolution, two taps": {"use_conv_bias": False, "conv_kernel": 2},
    "odd heads": {"hidden_size": 42, "num_heads": 4, "head_dim": 21, "state_size": 7},
}


def save(directory: Any, changes: dict[str, Any]) -> Any:
    """A random model as transformers writes it; returns the oracle."""
    import torch
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(3)
    oracle = Mamba2ForCausalLM(
        Mamba2Config(**{k: v for k, v in (CONFIG | changes).items() if k != "model_type"})
    ).eval()
    with torch.no_grad():
        for name, weight in oracle.named_parameters():  # the initial values hide mistakes: gains and skips are ones
            if name.endswith((".D", "norm.weight", "norm_f.weight", "bias")) and "dt_bias" not in name:
                weight += 0.3 * torch.randn_like(weight)
    oracle.save_pretrained(directory)
    return oracle


class Slots:
    """ops.step.StepView of one sequence whose first token is at `start`, on a slot of a real pool."""

    def __init__(self, program: Any, ids: list[int], start: int, pool: RecurrentPool) -> None:
        import torch

        self.token_ids, self.positions = torch.tensor(ids), torch.arange(start, start + len(ids))
        self.bounds, self.logit_tokens = ((0, len(ids)),), torch.arange(len(ids))
        self._plan = SimpleNamespace(entries=(SimpleNamespace(start=start, state=0),))
        self._pool = pool

    def tensor(self, weight: Any) -> Any:
        import torch

        return torch.from_numpy(weight.unpack())

    def state(self, layer: int) -> Any:
        from ridgeline.run.torch_body import SlotView

        return SlotView(self._plan, self._pool, layer, "cpu")


def logits(program: Any, ids: list[int], chunks: list[int]) -> np.ndarray:
    pool = RecurrentPool(RecurrentStorage(), program.state.shape, layers=len(program.state.layers), slots=1)
    pool.data[:] = 255  # NaN: what a slot held before must not be read
    found = []
    for start, stop in itertools.pairwise(itertools.accumulate([0, *chunks])):
        step = Slots(program, ids[start:stop], start, pool)
        values: dict[int, Any] = {}
        for line in program.lines[:-1]:
            values[line.output.id] = line.op.meaning(step, line, *(values[value.id] for value in line.inputs))
        found.append(values[program.lines[-2].output.id].numpy())
    return np.concatenate(found)


@pytest.mark.torch
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_logits_equal_transformers(tmp_path, changes):
    import torch

    oracle = save(tmp_path, changes)
    program = record(load(str(tmp_path)), STORAGES.get("f32"))
    with torch.no_grad():
        whole = oracle(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
        first = oracle(torch.tensor([IDS[:11]]), use_cache=True)
        steps, cache = [first.logits[0]], first.cache_params
        for token in IDS[11:]:
            answer = oracle(torch.tensor([[token]]), cache_params=cache, use_cache=True)
            steps.append(answer.logits[0])
        cached = torch.cat(steps).numpy()
    ours, largest = logits(program, IDS, [len(IDS)]), np.abs(whole).max()
    assert largest > 0.1
    assert np.abs(ours - whole).max() < 1e-5 * largest
    assert np.abs(ours - cached).max() < 1e-5 * largest
    for chunks in ([1] * len(IDS), [2, 3, 13], [17, 1]):
        assert np.abs(logits(program, IDS, chunks) - ours).max() < 1e-5 * largest


@pytest.mark.torch
def test_greedy_ids_equal_transformers(tmp_path):
    """Through the engine: native bodies, f32 weights, four requests at once in chunks."""
    import torch

    oracle = save(tmp_path, {"n_groups": 2, "initializer_range": 0.3})
    prompts = [tuple((7 * i + s * j * j + 3) % 128 for j in range(length)) for i, (s, length) in enumerate(LENGTHS)]
    expected = []
    for prompt in prompts:
        ids = oracle.generate(torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False)
        expected.append(tuple(ids[0, len(prompt) :].tolist()))
    engine = TinyEngine(str(tmp_path), weights="f32", context=128, chunk=10, max_sequences=3)
    requests = [Request(str(i), prompt, 12, ignore_stop=True) for i, prompt in enumerate(prompts)]
    # transformers forbids the end of text until 12 tokens are there; so do we
    bias = {2: -100.0}
    requests = [msgspec.structs.replace(one, sampling=Sampling(logit_bias=bias)) for one in requests]
    got = engine.run(requests)
    engine.engine.close()
    assert [got[str(i)] for i in range(len(prompts))] == expected
    assert len({token for ids in expected for token in ids}) > 12


@pytest.mark.torch
def test_the_reference_bodies_give_the_same_ids(tmp_path):
    save(tmp_path, {})
    requests = [Request(str(i), tuple(IDS[i:]), 4, ignore_stop=True) for i in range(3)]
    answers = []
    for body in ("torch", "cpp"):
        engine = TinyEngine(str(tmp_path), weights="f32", context=64, body=body, chunk=5)
        answers.append(engine.run(requests))
        engine.engine.close()
    assert answers[0] == answers[1]


def as_gguf(directory: Path, target: Path, **changes: Any) -> Path:
    """The same model as llama.cpp's converter writes it: its names, decays as negative numbers, its foldings."""
    spec = describe(str(directory)).spec
    tensors = load(str(directory)).weights
    shape = spec.state
    assert shape is not None
    metadata = {
        "general.architecture": "mamba2", "mamba2.block_count": spec.layers, "mamba2.context_length": 1 << 20,
        "mamba2.embedding_length": spec.width, "mamba2.feed_forward_length": 0, "mamba2.attention.head_count": 0,
        "mamba2.attention.layer_norm_rms_epsilon": spec.norm_eps, "mamba2.ssm.conv_kernel": shape.taps,
        "mamba2.ssm.inner_size": shape.inner, "mamba2.ssm.state_size": shape.states,
        "mamba2.ssm.time_step_rank": shape.heads, "mamba2.ssm.group_count": shape.groups,
        "tokenizer.ggml.eos_token_id": 2,
    } | changes  # fmt: skip
    dimensions = {
        "decay": (1, shape.heads), "skip": (1, shape.heads), "rate_bias": (shape.heads,),
        "gated_norm": (shape.inner // shape.groups, shape.groups), "conv_bias": (shape.channels,),
        "mixer_norm": (spec.width,),
    }  # fmt: skip
    rows = [("token_embd.weight", tensors.embed), ("output_norm.weight", tensors.final_norm)]
    rows += [("output.weight", tensors.head)] if not spec.tied else []
    listed = [(name, (w.columns, w.rows) if w.rows > 1 else (w.columns,), w) for name, w in rows]
    for index, mixer in enumerate(tensors.mixers):
        for role in type(mixer).__slots__:
            weight = getattr(mixer, role)
            if weight is not None:
                name = GGUF_MIXER_NAMES["layer"].format(index) + GGUF_MIXER_NAMES[role]
                listed.append((name, dimensions.get(role, (weight.columns, weight.rows)), weight))
    target.write_bytes(gguf(metadata, [(name, size, 0, w.unpack().tobytes()) for name, size, w in listed]))
    return target


@pytest.mark.torch
def test_a_gguf_file_is_the_same_model(tmp_path):
    save(tmp_path, {"n_groups": 3})
    file = as_gguf(tmp_path, tmp_path / "m.gguf")
    one, other = load(str(tmp_path)), load(str(file))
    eps = pytest.approx(one.spec.norm_eps)  # f32 in the file
    assert dataclasses.replace(other.spec, norm_eps=eps) == dataclasses.replace(one.spec, name="m", bos=None)
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a.unpack(), b.unpack())
    for wrong in ({"mamba2.ssm.group_count": 4}, {"mamba2.ssm.inner_size": 97}, {"mamba2.ssm.conv_kernel": 99}):
        with pytest.raises(UserError, match="m\\.gguf"):
            describe(str(as_gguf(tmp_path, tmp_path / "m.gguf", **wrong)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "computes silu"),
        ({"time_step_limit": [0.001, 0.1]}, "clamps the time step"),
        ({"time_step_limit": [0.0, 5]}, "clamps the time step"),
        ({"expand": 3}, "num_heads times head_dim"),
        ({"n_groups": 4}, "4 groups evenly"),
        ({"n_groups": 0}, "n_groups is 0"),
        ({"conv_kernel": 17}, "conv_kernel is 17"),
        ({"state_size": -1}, "state_size is -1"),
        ({"num_heads": 10**9}, "num_heads is"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon"),
    ],
)
def test_what_is_not_computed_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        spec_from_config(CONFIG | changes, "m", "config.json")


@pytest.mark.parametrize("limit", ["[0.0, Infinity]", '[0.0, {"__float__": "Infinity"}]', "null"])
def test_a_time_step_without_limit_is_read_as_published(tmp_path, limit):
    text = json.dumps(CONFIG)[:-1] + f', "time_step_limit": {limit}}}'
    (tmp_path / "config.json").write_text(text)
    spec = spec_from_config(read_json(tmp_path / "config.json"), "m", "config.json")
    assert spec.state is not None
    assert (spec.state.inner, spec.state.channels, spec.state.wide) == (96, 120, 222)


def test_small_tensors_stay_as_they_are_in_block_formats(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 64, "num_heads": 8}))
    weights = load(f"random:{tmp_path / 'config.json'}", weights="q4_1").weights
    mixer = weights.mixers[0]
    assert (mixer.wide.format.name, mixer.conv.format.name, mixer.decay.format.name) == ("q4_1", "f32", "f32")
    assert (mixer.decay.unpack() < 0).all()
    rate = np.log1p(np.exp(mixer.rate_bias.unpack()))
    assert ((rate > 0.0009) & (rate < 0.11)).all()

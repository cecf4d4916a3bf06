"""Families against transformers: the recorded Program, run by the operators' meanings, gives the same logits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import load, record

from .directory import write

pytestmark = pytest.mark.torch
IDS = [1, 17, 99, 3, 3, 64, 127, 0, 5, 42, 7, 7, 7, 100, 2, 31]
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3_text", "num_hidden_layers": 3, "head_dim": 32, "num_key_value_heads": 1,
    "query_pre_attn_scalar": 24, "sliding_window": 5, "sliding_window_pattern": 3, "rope_theta": 1e6,
    "rope_local_base_freq": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
CASES = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, heads wider than the model": {"head_dim": 32, "rope_theta": 5e5},
    "llama 3 rope": {"rope_scaling": LLAMA3},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral with a window": {"model_type": "mistral", "sliding_window": 5},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 with a window": {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "rope_theta": 1e6, "head_dim": 32},
    "qwen3 with a window": {
        "model_type": "qwen3", "head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "gemma3": GEMMA3,
    "gemma3, scaled global rope": GEMMA3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma3 of transformers 5": GEMMA3 | {
        "sliding_window_pattern": None, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_theta": None, "rope_local_base_freq": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    },
}  # fmt: skip


class Kept:
    """KV of one layer and one sequence, in f32."""

    def append(self, k, v):
        self.k, self.v = k, v

    def base(self, sequence):
        return 0

    def read(self, sequence):
        return self.k, self.v

    def add_mass(self, sequence, mass):
        pass


def logits(program, ids):
    """Every line's meaning, one sequence, a logit row per token; the sampling line left out."""
    import torch

    count = len(ids)
    kept: dict[tuple[int, int], Kept] = {}
    step = SimpleNamespace(
        token_ids=torch.tensor(ids), positions=torch.arange(count), bounds=((0, count),),
        logit_tokens=torch.arange(count), trees=(None,), tensor=lambda weight: torch.from_numpy(weight.unpack()),
        kv=lambda group, layer: kept.setdefault((group, layer), Kept()),
    )  # fmt: skip
    values = {}
    for line in program.lines[:-1]:
        values[line.output.id] = line.op.meaning(step, line, *(values[value.id] for value in line.inputs))
    return values[program.lines[-2].output.id].numpy()


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_logits_equal_transformers(tmp_path, changes):
    import torch
    from transformers import AutoModelForCausalLM

    directory = write(tmp_path / "m", changes)
    program = record(load(str(directory)), STORAGES.get("f32"))
    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = oracle(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(expected).max() > 0.1
    assert np.abs(logits(program, IDS) - expected).max() < 1e-4


def test_interleaved_rope_is_a_permutation_of_halves(tmp_path):
    """GGUF stores llama's q and k rows as pairs (i, i + half) side by side; its rope turns neighbours."""
    import dataclasses

    from ridgeline.formats.format import FORMATS
    from ridgeline.models.load import LoadedModel
    from ridgeline.models.weights import map_weights

    loaded = load(str(write(tmp_path / "m")))
    dim = loaded.spec.head_dim

    def permute(role, weight):
        if role not in ("q", "k"):
            return weight
        rows = weight.unpack().reshape(-1, 2, dim // 2, weight.columns).swapaxes(1, 2).reshape(weight.rows, -1)
        return dataclasses.replace(weight, make=None, stored=FORMATS.get("f32").pack(np.ascontiguousarray(rows)))

    rope = dataclasses.replace(loaded.spec.rope, interleaved=True)
    spec = dataclasses.replace(loaded.spec, rope=rope)
    as_gguf = LoadedModel(spec, map_weights(loaded.weights, permute))
    storage = STORAGES.get("f32")
    assert np.abs(logits(record(as_gguf, storage), IDS) - logits(record(loaded, storage), IDS)).max() < 1e-5

"""The last hidden state that an engine tells is transformers' own, on the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ridgeline.llm import LLM
from ridgeline.models.load import load
from ridgeline.state.request import Request

pytestmark = [pytest.mark.model, pytest.mark.torch]

EVERY = 3


def transformers_model() -> Any:
    """Their LlamaModel with our unpacked weights; GGUF interleaves the two halves of a rotated head, they do not."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    loaded = load("smollm2-135m")
    spec, weights = loaded.spec, loaded.weights
    config = transformers.LlamaConfig(
        vocab_size=spec.vocabulary, hidden_size=spec.width, intermediate_size=1536, num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads, head_dim=spec.head_dim,
        rms_norm_eps=spec.norm_eps, rope_parameters={"rope_type": "default", "rope_theta": spec.rope_of(0).base},
        max_position_embeddings=spec.context, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaModel(config)
    state = {"embed_tokens.weight": weights.embed, "norm.weight": weights.final_norm}
    for index, layer in enumerate(weights.layers):
        parts = {
            "input_layernorm": layer.attend_norm, "post_attention_layernorm": layer.mlp_norm,
            "self_attn.q_proj": layer.q, "self_attn.k_proj": layer.k, "self_attn.v_proj": layer.v,
            "self_attn.o_proj": layer.o, "mlp.gate_proj": layer.gate, "mlp.up_proj": layer.up,
            "mlp.down_proj": layer.down,
        }  # fmt: skip
        state |= {f"layers.{index}.{name}.weight": weight for name, weight in parts.items()}
    arrays = {name: torch.from_numpy(np.array(weight.unpack())) for name, weight in state.items()}
    for name, array in arrays.items():
        if array.shape[0] == 1:
            arrays[name] = array[0]
        elif "q_proj" in name or "k_proj" in name:
            pairs = array.reshape(-1, spec.head_dim // 2, 2, spec.width)
            arrays[name] = pairs.transpose(1, 2).reshape(array.shape).contiguous()
    model.load_state_dict(arrays, assign=True)
    model.rotary_emb = type(model.rotary_emb)(config)
    return model.eval()


def test_it_is_what_transformers_computes() -> None:
    torch = pytest.importorskip("torch")
    with LLM("smollm2-135m", weights="f32", context=256) as llm:
        prompt = llm.render([{"role": "user", "content": "Name three fruits."}])
        events = list(llm.submit(Request("one", prompt, 8, ignore_stop=True, hidden_every=EVERY)))
    output = [token for event in events for token in event.tokens]
    told = {number: np.frombuffer(event.hidden, "<f4") for number, event in enumerate(events) if event.hidden}
    assert list(told) == [0, 3, 6]  # before the first token, and before every third one after it
    with torch.no_grad():
        states = transformers_model()(torch.tensor([[*prompt, *output]])).last_hidden_state[0].numpy()
    for number, ours in told.items():
        theirs = states[len(prompt) + number - 1]
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())

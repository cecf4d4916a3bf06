"""Writes small Hugging Face model directories for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 128, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float32", "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


def tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    width, ffn, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    q, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (width,), prefix + "post_attention_layernorm.weight": (width,),
            prefix + "self_attn.q_proj.weight": (q, width), prefix + "self_attn.k_proj.weight": (kv, width),
            prefix + "self_attn.v_proj.weight": (kv, width), prefix + "self_attn.o_proj.weight": (width, q),
            prefix + "mlp.gate_proj.weight": (ffn, width), prefix + "mlp.up_proj.weight": (ffn, width),
            prefix + "mlp.down_proj.weight": (width, ffn),
        }  # fmt: skip
        if config["model_type"] in ("qwen3", "gemma3_text"):
            shapes |= {prefix + f"self_attn.{n}_norm.weight": (head,) for n in "qk"}
        if config["model_type"] == "gemma3_text":
            shapes |= {prefix + f"{n}_feedforward_layernorm.weight": (width,) for n in ("pre", "post")}
        if config["model_type"] == "qwen2":
            shapes |= {prefix + f"self_attn.{n}_proj.bias": (size,) for n, size in (("q", q), ("k", kv), ("v", kv))}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    return {name: (0.1 * generator.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def write(directory: Path, changes: dict[str, Any] | None = None, edit: Any = None) -> Path:
    """config.json and model.safetensors; `changes` to the configuration, `edit` to the tensors."""
    config = {key: value for key, value in (CONFIG | (changes or {})).items() if value is not None}
    kept = tensors(CONFIG | (changes or {})) if edit is None else edit(tensors(CONFIG))
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(kept, directory / "model.safetensors")
    return directory

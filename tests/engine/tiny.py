"""Tiny random models that run through the real engine, for tests of exactness. No quality is claimed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 331,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
QWEN2 = LLAMA | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False, "vocab_size": 352,
}  # fmt: skip
QWEN3 = LLAMA | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32, "num_attention_heads": 4,
    "vocab_size": 352, "rope_theta": 1e6,
}  # fmt: skip
GEMMA3 = LLAMA | {  # a window of 40 keys in two layers of three, each kind of layer with its own rope
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 3, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 1, "query_pre_attn_scalar": 24, "sliding_window": 40,
    "sliding_window_pattern": 3, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "vocab_size": 352,
}  # fmt: skip
MAMBA2 = {  # two groups, heads that are not a whole vector everywhere, columns that every format takes
    "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": 96, "num_hidden_layers": 2,
    "num_heads": 8, "head_dim": 24, "state_size": 20, "n_groups": 2, "expand": 2, "conv_kernel": 4, "vocab_size": 352,
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False, "use_bias": False, "use_conv_bias": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

MIXTRAL = LLAMA | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2,
    "vocab_size": 352, "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_MOE = LLAMA | {
    "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": 5, "num_experts_per_tok": 3,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96, "vocab_size": 352, "tie_word_embeddings": False,
}  # fmt: skip


def write_config(directory: Path, config: dict[str, Any]) -> str:
    """A config.json; returns the model name `random:<path>`."""
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return f"random:{path}"


class TinyEngine:
    """An engine in this process, driven step by step."""

    def __init__(self, model: str, **options: Any) -> None:
        self.engine = build(EngineConfig(model=model, **({"threads": 2, "kv_bytes": 1 << 22} | options)))

    def run(self, requests: Iterable[Request], arrivals: Iterable[int] = ()) -> dict[str, tuple[int, ...]]:
        """All requests to their end; request i is added before step arrivals[i] (0 when not given). Token ids by id."""
        waiting = sorted(zip_default(requests, arrivals), key=lambda pair: pair[1])
        tokens: dict[str, list[int]] = {request.id: [] for request, _ in waiting}
        done = 0
        for step in range(100_000):
            while waiting and waiting[0][1] <= step:
                self.engine.add(waiting.pop(0)[0])
            for event in self.engine.step():
                tokens[event.request] += event.tokens
                done += event.finish is not None
            self.engine.check()
            if done == len(tokens):
                return {name: tuple(ids) for name, ids in tokens.items()}
        raise AssertionError("the engine did not finish")

    def events(self, request: Request) -> list[TokenEvent]:
        self.engine.add(request)
        events: list[TokenEvent] = []
        while not events or events[-1].finish is None:
            events += self.engine.step()
        return events


def zip_default(requests: Iterable[Request], arrivals: Iterable[int]) -> list[tuple[Request, int]]:
    given = list(arrivals)
    return [(request, given[i] if i < len(given) else 0) for i, request in enumerate(requests)]

"""A tiny model directory with a byte tokenizer and a chat template: every verb runs on it, nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

from ridgeline.cli.main import app

WIDTH, FFN, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 96, 2, 4, 2, 320
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": FFN, "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False,
    "bos_token_id": 256, "eos_token_id": 257,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}: {{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)


def write_model(directory: Path) -> str:
    generator = np.random.default_rng(5)
    head = WIDTH // HEADS
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        attend, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        shapes |= {
            attend + "q_proj.weight": (WIDTH, WIDTH), attend + "k_proj.weight": (KV_HEADS * head, WIDTH),
            attend + "v_proj.weight": (KV_HEADS * head, WIDTH), attend + "o_proj.weight": (WIDTH, WIDTH),
            mlp + "gate_proj.weight": (FFN, WIDTH), mlp + "up_proj.weight": (FFN, WIDTH),
            mlp + "down_proj.weight": (WIDTH, FFN),
        }  # fmt: skip
    tensors = {name: (0.1 * generator.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    norms = ["model.norm.weight"]
    norms += [f"model.layers.{i}.{n}_layernorm.weight" for i in range(LAYERS) for n in ("input", "post_attention")]
    tensors |= {name: np.ones(WIDTH, np.float32) for name in norms}
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)} | {"<|start|>": 256, "<|end|>": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|end|>"}))
    return str(directory)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One RIDGELINE_HOME for the session: this machine is measured once (1 s)."""
    return tmp_path_factory.mktemp("home")


class Command:
    """The command line in this process: no shell, both streams apart."""

    def __init__(self, home: Path) -> None:
        self._runner = CliRunner(env={"RIDGELINE_HOME": str(home)})

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> tuple[str, str]:
        """(stdout, stderr); fails when the exit code is another."""
        result = self._runner.invoke(app, list(arguments), input=stdin)
        assert result.exit_code == code, f"{result.exit_code}: {result.stdout}{result.stderr}{result.exception!r}"
        return result.stdout, result.stderr

    def document(self, *arguments: str, stdin: str = "") -> dict:
        """The JSON document: it must be all that stdout holds."""
        stdout, _ = self(*arguments, "--json", stdin=stdin)
        assert len(stdout.splitlines()) == 1
        return json.loads(stdout.splitlines()[-1])


@pytest.fixture
def ridgeline(home: Path) -> Command:
    return Command(home)

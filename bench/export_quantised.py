"""A GGUF model in the layouts of quantised Hugging Face checkpoints, each run through LLM() and scored (F2-F4, F8, F9).

Widens the file, rounds its linears to nearest, writes config.json, safetensors and the tokenizer, and prints for each
layout: bytes of the file's tensors, resident bytes, perplexity and KL from the widened file, greedy ids. Layouts that
hold the same codes must answer with the same ids: an AssertionError if not. The last line is one JSON document.
PYTHONPATH=src python bench/export_quantised.py smollm2-135m --tokens 1500 [--keep DIR] [--layouts awq,ct-int4]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import quantised_layouts as layouts

from ridgeline.engine.config import EngineConfig
from ridgeline.llm import LLM
from ridgeline.models.load import LoadedModel, load
from ridgeline.models.weights import HF_NAMES
from ridgeline.perf.quality import Scorer, measure_quality, named_text, windows_of
from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch

ALIKE = {  # hold the same codes, scales and zeros
    "with zeros": ("gptq", "gptq_v2", "awq", "ct-int4"),
    "symmetric": ("gptq-sym", "gptq_v2-sym", "ct-int4-sym"),
    "eight bits a row": ("ct-int8", "ct-pack8"),
}
PROMPTS = (
    "The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a village by the sea,",
    "Water boils at a lower temperature on a mountain because",
)  # fmt: skip
MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def hugging_face(model: LoadedModel) -> tuple[dict[str, Any], dict[str, layouts.Array]]:
    """(config.json, tensors in f32) of a dense model. GGUF's llama files have the rows of q and k in pairs."""
    spec = model.spec
    if spec.family not in MODEL_TYPES:
        raise SystemExit(f"{spec.name} is of family {spec.family}; exported here: {', '.join(MODEL_TYPES)}.")
    config = {
        "model_type": spec.family, "architectures": [MODEL_TYPES[spec.family]], "hidden_size": spec.width,
        "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim, "intermediate_size": spec.ffn, "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.context, "rms_norm_eps": spec.norm_eps, "rope_theta": spec.rope.base,
        "tie_word_embeddings": spec.tied, "bos_token_id": spec.bos, "eos_token_id": list(spec.eos),
        "hidden_act": "silu", "torch_dtype": "float16",
    }  # fmt: skip
    outer = {"embed": model.weights.embed, "final_norm": model.weights.final_norm}
    outer |= {} if spec.tied else {"head": model.weights.head}
    found = [(HF_NAMES[role], role, weight) for role, weight in outer.items()]
    for index, layer in enumerate(model.weights.layers):
        for role in type(layer).__slots__:
            weight = getattr(layer, role)
            if weight is not None:
                found.append((HF_NAMES["layer"].format(index) + HF_NAMES[role], role, weight))
    tensors = {}
    for name, role, weight in found:
        values = weight.unpack()
        if role in ("q", "k") and spec.rope.interleaved:
            values = values.reshape(-1, spec.head_dim // 2, 2, weight.columns).swapaxes(1, 2)
        is_vector = role.endswith(("norm", "bias"))
        tensors[name] = values.reshape(-1) if is_vector else values.reshape(weight.rows, weight.columns)
    return config, tensors


def write_tokenizer(model: LoadedModel, directory: Path) -> None:
    tokenizer = model.tokenizer()
    if tokenizer is None:
        raise SystemExit(f"{model.spec.name} has no tokenizer.")
    tokenizer._pipeline.save(str(directory / "tokenizer.json"))
    named = {f"{key}_token": tokenizer.piece(token).decode() for key, token in
             (("bos", tokenizer.bos), ("eos", tokenizer.eos[0])) if token is not None}  # fmt: skip
    settings = named | {"add_bos_token": tokenizer.add_bos, "chat_template": model.chat_template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def tensor_bytes(directory: Path) -> dict[str, int]:
    """Of model.safetensors: linears' codes, scales and zeros by their last name; everything else as plain."""
    with (directory / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    found: dict[str, int] = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        part = name.rpartition(".")[2] if "_proj." in name else "plain"
        found[part] = found.get(part, 0) + end - begin
    return found


def run(directory: Path, threads: int | None, activations: str) -> dict[str, Any]:
    """Greedy ids of the prompts, resident bytes, speed."""
    with LLM(str(directory), context=256, max_sequences=1, threads=threads, activations=activations) as llm:
        started, ids = time.perf_counter(), []
        for prompt in PROMPTS:
            ids.append(llm.generate([prompt], max_tokens=32, ignore_stop=True)[0].tokens)
        facts = llm.facts
        return {
            "ids": ids, "resident_bytes": facts.resident_weight_bytes, "load_s": facts.load_s, "notes": llm.notes,
            "tokens_per_s": 32 * len(PROMPTS) / (time.perf_counter() - started),
        }  # fmt: skip


def measure(asked: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    whole = load(asked.model, weights="f32")
    config, tensors = hugging_face(whole)
    tokenizer = whole.tokenizer()
    assert tokenizer is not None
    windows = windows_of(tokenizer.encode(named_text(asked.text), add_bos=False), asked.tokens)
    rows = []
    row = "{:<12} {:>13} {:>13} {:>13} {:>8} {:>8} {:>7} {:>6} {:>9}"
    print(row.format("layout", "file tensors", "resident", "left out", "ppl", "change", "KL", "same", "tokens/s"))
    with closing(Scorer(EngineConfig(asked.model, weights="f32", threads=asked.threads))) as parent:
        for layout in asked.layouts.split(","):
            directory = layouts.write(root / layout, config, tensors, layout, asked.span, asked.plain)
            write_tokenizer(whole, directory)
            found = run(directory, asked.threads, asked.activations)
            stored = tensor_bytes(directory)
            with closing(
                Scorer(EngineConfig(str(directory), threads=asked.threads, activations=asked.activations))
            ) as scorer:
                quality = measure_quality(
                    scorer, parent, windows, lambda token: len(tokenizer.piece(token)), asked.text
                )
            if asked.keep is None:
                shutil.rmtree(directory)
            assert quality.parent_perplexity is not None and quality.kl is not None and quality.agreement is not None
            file_bytes, resident = sum(stored.values()), found["resident_bytes"]
            print(
                row.format(
                    layout, f"{file_bytes:,}", f"{resident:,}", f"{file_bytes - resident:,}",
                    f"{quality.perplexity:.2f}", f"{quality.perplexity / quality.parent_perplexity - 1:+.1%}",
                    f"{quality.kl:.4f}", f"{quality.agreement:.1%}", f"{found['tokens_per_s']:.1f}",
                ), flush=True,
            )  # fmt: skip
            rows.append(
                {"layout": layout, "file": stored, "file_bytes": file_bytes, **found, "quality": quality_of(quality)}
            )
    return rows


def quality_of(quality: Any) -> dict[str, Any]:
    return {name: getattr(quality, name) for name in quality.__struct_fields__}


def check_alike(rows: list[dict[str, Any]]) -> None:
    by_name = {row["layout"]: row for row in rows}
    for what, names in ALIKE.items():
        present = [by_name[name] for name in names if name in by_name]
        for one in present[1:]:
            assert one["ids"] == present[0]["ids"], f"{one['layout']} answers otherwise than {present[0]['layout']}"
            assert one["quality"]["perplexity"] == present[0]["quality"]["perplexity"]
        if len(present) > 1:
            print(f"{what}: {', '.join(row['layout'] for row in present)} give the same ids and the same perplexity")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model", nargs="?", default="smollm2-135m")
    options.add_argument("--layouts", default=",".join(layouts.LAYOUTS))
    options.add_argument("--span", type=int, default=64, help="columns that share a scale")
    options.add_argument("--plain", default="float16", choices=("float16", "float32"), help="what is not quantised")
    options.add_argument("--text", default="pydoc")
    options.add_argument("--tokens", type=int, default=1500)
    options.add_argument("--threads", type=int)
    options.add_argument("--activations", default="auto", help="what integer linears read: auto, int8, int16")
    options.add_argument("--keep", type=Path, help="leave the directories here")
    asked = options.parse_args()
    watch = CpuWatch()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(asked, asked.keep or Path(name))
    check_alike(rows)
    print(
        json.dumps(
            {"machine": fingerprint().cpu, "foreign_cpu_share": watch.foreign_cpu_share(), "model": asked.model,
             "span": asked.span, "plain": asked.plain, "activations": asked.activations, "layouts": rows},
            default=lambda value: value.item() if isinstance(value, np.generic) else str(value),
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Tokens and logits against oracles.   python bench/oracle_tokens.py [MODEL.gguf] [--tokens 48] [--cache DIR]

1. Greedy ids with f32 weights equal transformers' over 48 tokens on 24 prompts. A difference is excused only where
   transformers' own best two logits lie closer than 0.01, and every excuse is listed.
2. Logits with f32 weights against transformers, on every instruction set: largest difference <= 1e-3.
3. Logits of the native bits and of bf16 against the reference bodies in f32 on the same bits: <= 2e-2 of the largest
   logit. Exit code 1 when a limit is broken. The last line is one JSON document. Needs PyTorch and transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.kernels import native
from ridgeline.llm import LLM
from ridgeline.models.pull import pull
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from transformers_generate import CACHE, converted

NEAR_TIE, F32_LIMIT, BODY_LIMIT = 0.01, 1e-3, 2e-2
Logits = npt.NDArray[np.float32]
Json = dict[str, Any]

QUESTIONS = (
    "Name three fruits.", "What is the capital of France?", "Why is the sky blue?", "Write a haiku about winter.",
    "How many legs does a spider have?", "Explain photosynthesis in two sentences.", "Who wrote Hamlet?",
    "List the primary colours.", "Translate 'good morning' into Spanish.", "What is 7 times 8?",
    "Give me a recipe for pancakes.", "What does a compiler do?",
)  # fmt: skip
BEGINNINGS = (
    "The capital of France is", "Once upon a time, in a small village,", "def fibonacci(n):\n    ",
    "It is a truth universally acknowledged, that a single man", "1, 2, 3, 4,", "The opposite of hot is",
    "To make a cup of tea, first", "In the beginning", "Water boils at", "import numpy as np\n",
    "The three laws of robotics are", "Dear Sir or Madam,",
)  # fmt: skip


def prompts(llm: LLM) -> list[tuple[int, ...]]:
    asked = [llm.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    return asked + [llm.encode(beginning) for beginning in BEGINNINGS]


def first_difference(ours: tuple[int, ...], theirs: list[int]) -> int | None:
    return next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)


def compare_tokens(model: str, oracle: Any, tokens: int) -> Json:
    """Greedy continuations; `differences` holds every prompt whose ids are not all equal."""
    with LLM(model, weights="f32") as llm:
        asked = prompts(llm)
        ours = [done.tokens for done in llm.generate(asked, max_tokens=tokens, ignore_stop=True)]
    differences = []
    for number, (prompt, made) in enumerate(zip(asked, ours, strict=True)):
        output = oracle.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=tokens, min_new_tokens=tokens, eos_token_id=None, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        at = first_difference(made, output.sequences[0, len(prompt) :].tolist())
        if at is not None:
            best, second = output.logits[at][0].topk(2).values.tolist()
            differences.append({"prompt": number, "at": at, "margin": best - second})
    broken = [d for d in differences if d["margin"] >= NEAR_TIE]
    return {"prompts": len(asked), "tokens": tokens, "differences": differences, "broken": len(broken)}


def logits(prompt: tuple[int, ...], **options: Any) -> Logits:
    """[tokens, vocabulary] for every position of a prompt, by an engine built with `options`."""
    engine = build(EngineConfig(context=512, kv_bytes=64 << 20, step_logit_rows=len(prompt), **options))
    try:
        rows = tuple(LogitRow(at, at + 1, Sampling()) for at in range(len(prompt)))
        blocks = np.arange(-(-len(prompt) // engine.facts.block_tokens), dtype=np.int32)
        engine.runner.collect(engine.runner.submit(StepPlan((Entry(0, 0, prompt, (blocks,), rows),))))
        return engine.runner.last_logits(len(prompt))  # type: ignore[attr-defined,no-any-return]
    finally:
        engine.close()


def error(name: str, ours: Logits, reference: Logits, limit: float, is_relative: bool) -> Json:
    absolute = float(np.abs(ours - reference).max())
    largest = float(np.abs(reference).max())
    counted = absolute / largest if is_relative else absolute
    agree = float((ours.argmax(1) == reference.argmax(1)).mean())
    return {
        "name": name, "absolute": absolute, "largest_logit": largest, "relative": absolute / largest, "limit": limit,
        "same_best": agree, "is_kept": counted <= limit,
    }  # fmt: skip


def compare_logits(model: str, oracle: Any, prompt: tuple[int, ...]) -> list[Json]:
    with torch.inference_mode():
        theirs = oracle(torch.tensor([prompt])).logits[0].numpy()
    sets = native.instruction_sets()
    found = [
        error(
            f"f32 {isa} to transformers", logits(prompt, model=model, weights="f32", isa=isa), theirs, F32_LIMIT, False
        )
        for isa in sets
    ]
    for weights in ("native", "bf16"):
        reference = logits(prompt, model=model, weights=weights, body="torch", kv="f32")
        found += [
            error(
                f"{weights} {isa} to its own weights in f32", logits(prompt, model=model, weights=weights, isa=isa),
                reference, BODY_LIMIT, True,
            )
            for isa in sets
        ]  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; default: smollm2-135m, pulled if need be")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where transformers' copy of the weights is kept")
    options = parser.parse_args()
    path = options.model or pull("smollm2-135m")
    transformers.logging.set_verbosity_error()
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        converted(path, "float32", options.cache), dtype=torch.float32
    ).eval()
    ids = compare_tokens(str(path), oracle, options.tokens)
    print(f"greedy ids, f32: {ids['prompts']} prompts x {ids['tokens']} tokens, {len(ids['differences'])} differ")
    for one in ids["differences"]:
        excuse = "near-tie" if one["margin"] < NEAR_TIE else "BROKEN"
        print(f"  prompt {one['prompt']}, token {one['at']}: transformers' margin {one['margin']:.4f} logit  {excuse}")
    with LLM(str(path), weights="f32") as llm:
        text = " ".join(BEGINNINGS)
        prompt = llm.encode(text)
    errors = compare_logits(str(path), oracle, prompt)
    print(f"logits at {len(prompt)} positions x {oracle.config.vocab_size} tokens")
    for row in errors:
        print(
            f"  {row['name']:45} max |difference| {row['absolute']:.2e}, relative {row['relative']:.2e}, "
            f"same best token {row['same_best']:.1%}, limit {row['limit']:g}: {'kept' if row['is_kept'] else 'BROKEN'}"
        )
    print(json.dumps({"schema": "ridgeline.bench.oracle_tokens/1", "model": path.name, "ids": ids, "logits": errors}))
    return 1 if ids["broken"] or not all(row["is_kept"] for row in errors) else 0


if __name__ == "__main__":
    sys.exit(main())

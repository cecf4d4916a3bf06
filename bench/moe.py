"""A mixture's step time against the distinct experts it reads, E (1 - (1 - k/E)^B), on random shapes.

python bench/moe.py [--shapes mixture-64x2,mixture-128x4] [--weights bf16] [--threads 1] [--repetitions 60]
python bench/moe.py --shapes "" --split smollm2-135m      a real dense model and its exact split into eight experts
Steps of B sequences, one token each, go through the runner; batches are interleaved, tokens are drawn anew for every
step, a line's time is its 10th percentile (others may share the machine). Beside each time stands what the law says:
lines that are no experts as measured, plus the expected distinct experts times the seconds one takes at the smallest
batch that reads eight or more. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from ridgeline import LLM
from ridgeline.kit.clock import WallClock
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES
from ridgeline.models.load import load, record
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.experts import distinct
from ridgeline.run.arena import StepLimits
from ridgeline.run.bind import bind
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import load_or_measure
from ridgeline.run.runner import Runner
from ridgeline.state.plan import Entry, LogitRow, StepPlan, StepResult
from ridgeline.state.request import Sampling

PROMPTS = (
    "The capital of France is", "def fibonacci(n):", "Once upon a time", "Water boils at", "Newton's laws are",
    "In 1969,", "A recipe for bread:", "The derivative of x squared is",
)  # fmt: skip
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 31  # kept tokens before each step's one
BLOCKS = CONTEXT // BLOCK_TOKENS + 1
ENOUGH = 7.0  # experts: the first ones of a step also pay for barriers and the passes between
ROUTING = ("router", "route", "dispatch", "combine")
Json = dict[str, Any]


def plan(batch: int, vocabulary: int, generator: np.random.Generator) -> StepPlan:
    """One token of each of `batch` sequences, drawn anew."""
    tokens = generator.integers(3, vocabulary, batch).tolist()
    return StepPlan(
        tuple(
            Entry(
                index, CONTEXT, (token,), (np.arange(index * BLOCKS, (index + 1) * BLOCKS, dtype=np.int32),),
                (LogitRow(0, CONTEXT + 1, Sampling()),),
            )
            for index, token in enumerate(tokens)
        )
    )  # fmt: skip


def measure(shape: str, weights: str, threads: int, repetitions: int) -> Json:
    loaded = load(f"random:{shape}", weights=weights)
    storage = STORAGES.get("bf16")
    program = record(loaded, storage)
    limits = StepLimits(max(BATCHES), max(BATCHES), max(BATCHES), CONTEXT + BLOCK_TOKENS)
    pools = tuple(
        KvPool(storage, layers=len(g.layers), kv_heads=g.kv_heads, head_dim=g.head_dim, blocks=BLOCKS * max(BATCHES))
        for g in program.kv_groups
    )
    runner = Runner(bind(program), pools, limits=limits, threads=threads, clock=WallClock())
    generator = np.random.default_rng(0)
    results: dict[int, list[StepResult]] = {batch: [] for batch in BATCHES}
    for _ in range(repetitions + 1):
        for batch in BATCHES:
            step = plan(batch, loaded.spec.vocabulary, generator)
            results[batch].append(runner.collect(runner.submit(step)))
    runner.close()
    parts = [line.part for line in program]
    estimator = Estimator(program, load_or_measure(threads))
    routing = program.lines[parts.index("route")].attributes["routing"]
    rows = [row(batch, results[batch][1:], parts, estimator) for batch in BATCHES]
    first = next(each for each in rows if each["experts_counted"] >= ENOUGH)
    for each in rows:
        expected = distinct(BatchShape(each["batch"], 0, 0, 0, 0), routing.experts, routing.chosen)
        each["experts_expected"] = float(expected)
        per_expert_s = first["experts_s"] / first["experts_counted"]
        each["law_s"] = each["other_s"] + each["routing_s"] + per_expert_s * each["experts_expected"]
        each["law_error"] = each["law_s"] / each["step_s"] - 1
        each["expert_us"] = 1e6 * each["experts_s"] / each["experts_counted"]
    return {
        "shape": shape, "weights": weights, "threads": threads, "experts": routing.experts, "chosen": routing.chosen,
        "weight_bytes": sum(weight.nbytes for weight in program.weights), "rows": rows,
    }  # fmt: skip


def row(batch: int, results: Sequence[StepResult], parts: list[str], estimator: Estimator) -> Json:
    """Every line's time is its 10th percentile over the steps: lines are short, and others share this machine."""
    lines = np.quantile([r.line_ns for r in results if r.line_ns is not None], 0.1, axis=0) * 1e-9
    seconds = {
        name: float(
            sum(s for part, s in zip(parts, lines, strict=True) if (part in ROUTING, part == "experts") == which)
        )
        for name, which in (("routing_s", (True, False)), ("experts_s", (False, True)), ("other_s", (False, False)))
    }
    shape = BatchShape.of([(CONTEXT, 1)] * batch, batch)
    counted = statistics.mean(r.experts or 0.0 for r in results)
    router = {part: float(lines[[p == part for p in parts]].sum()) for part in ROUTING}
    return {
        "batch": batch, "step_s": sum(seconds.values()), **seconds, "experts_counted": counted, "routing_parts": router,
        "predicted_s": float(np.asarray(estimator.step_seconds(shape))),
    }  # fmt: skip


def split(model: str, weights: str, threads: int) -> Json:
    """A dense model and its exact split into eight experts: greedy ids through LLM(), and how far logits differ."""
    ids: dict[str, list[tuple[int, ...]]] = {}
    logits: dict[str, Any] = {}
    for name in (model, f"moe8:{model}"):
        # 15 bits everywhere: what an outlier is depends on a row, and those of an expert are shorter
        with LLM(
            name, weights=weights, threads=threads, context=512, kv_bytes=1 << 26, activations="int16"
        ) as llm:  # fmt: skip
            ids[name] = [answer.tokens for answer in llm.generate(list(PROMPTS), max_tokens=48)]
        logits[name] = logits_of(name, weights, threads, ids[model][0])
    dense, mixture = ids.values()
    largest = float(np.abs(logits[model]).max())
    difference = float(np.abs(logits[model] - logits[f"moe8:{model}"]).max())
    return {
        "model": model, "weights": weights, "prompts": len(dense), "tokens": sum(map(len, dense)),
        "equal": sum(a == b for a, b in zip(dense, mixture, strict=True)),
        "logit_difference": difference, "largest_logit": largest,
    }  # fmt: skip


def logits_of(model: str, weights: str, threads: int, ids: Sequence[int]) -> Any:
    """[len(ids), vocabulary] of one step."""
    storage, count = STORAGES.get("f32" if weights == "f32" else "bf16"), len(ids)  # as LLM() keeps them
    program = record(load(model, weights=weights), storage)
    blocks = count // BLOCK_TOKENS + 1
    pools = tuple(
        KvPool(storage, layers=len(g.layers), kv_heads=g.kv_heads, head_dim=g.head_dim, blocks=blocks)
        for g in program.kv_groups
    )
    limits = StepLimits(count, count, 1, blocks * BLOCK_TOKENS)
    bound = bind(program, activations="int16")
    runner = Runner(bound, pools, limits=limits, threads=threads, clock=WallClock())
    rows = tuple(LogitRow(i, i + 1, Sampling()) for i in range(count))
    entry = Entry(0, 0, tuple(ids), tuple(np.arange(blocks, dtype=np.int32) for _ in pools), rows)
    runner.collect(runner.submit(StepPlan((entry,))))
    found = runner.last_logits(count)
    runner.close()
    return found


def show_split(found: Json) -> None:
    print(
        f"moe8:{found['model']}, weights {found['weights']}: {found['equal']} of {found['prompts']} answers "
        f"({found['tokens']} greedy tokens) equal the dense model's; logits differ by at most "
        f"{found['logit_difference']:.2e} of {found['largest_logit']:.1f} "
        f"({found['logit_difference'] / found['largest_logit']:.1e})"
    )


def show(found: Json) -> None:
    print(
        f"\nrandom:{found['shape']}, {found['weights']}, {found['threads']} threads, "
        f"{found['chosen']} of {found['experts']} experts, {found['weight_bytes'] / 1e6:.0f} MB of weights"
    )
    print(
        "batch  counted  expected   step ms  by the law  error  estimate  error  us/expert  routing  "
        "(router route dispatch combine)"
    )
    for r in found["rows"]:
        share = r["routing_s"] / r["step_s"]
        parts = " ".join(f"{part_s / r['step_s']:6.1%}" for part_s in r["routing_parts"].values())
        print(
            f"{r['batch']:5d}  {r['experts_counted']:7.1f}  {r['experts_expected']:8.1f}  {1e3 * r['step_s']:8.2f}  "
            f"{1e3 * r['law_s']:10.2f}  {r['law_error']:+5.1%}  {1e3 * r['predicted_s']:8.2f}  "
            f"{r['predicted_s'] / r['step_s'] - 1:+5.0%}  {r['expert_us']:9.1f}  {share:7.1%}  ({parts})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="mixture-64x2,mixture-128x4")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--split", default="", help="a dense model to split into eight experts, e.g. smollm2-135m")
    options = parser.parse_args()
    splits = []
    for weights in ("native", "bf16", "f32") if options.split else ():
        splits.append(split(options.split, weights, options.threads))
        show_split(splits[-1])
    found = [
        measure(shape, options.weights, options.threads, options.repetitions)
        for shape in options.shapes.split(",")
        if shape
    ]
    for each in found:
        show(each)
    machine = load_or_measure(options.threads)
    print(
        json.dumps(
            {
                "bench": "moe",
                "cpu": machine.fingerprint.cpu,
                "cores": machine.fingerprint.cores,
                "shapes": found,
                "splits": splits,
            }
        )
    )


if __name__ == "__main__":
    main()

"""Estimated steps beside measured ones, operator kind by operator kind: what predictions are worth (issue 6).

python bench/estimates.py steps MODEL --out FILE [--threads 2] [--seconds 40]   measures; appends a line a round
python bench/estimates.py show MODEL --out FILE [--threads 2] [--plain]         beside what this machine's file says
--plain: as if our kernels had never been calibrated. The steps are made of other rows and contexts than those the
calibration (perf/calibrate.py) is fitted on, and of MODEL's own weights: they are the test set, never the fit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ridgeline.kit.clock import WallClock
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES
from ridgeline.models.load import describe, load, record
from ridgeline.perf.calibrate import calibrated
from ridgeline.run.activations import DEFAULT
from ridgeline.run.arena import StepLimits
from ridgeline.run.bind import bind
from ridgeline.run.cost_runner import batch_shape
from ridgeline.run.count import alike
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import load_or_measure
from ridgeline.run.noise import CpuWatch
from ridgeline.run.runner import Runner
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

Entries = tuple[tuple[int, int], ...]  # (context before, tokens) of every sequence
LIMITS = StepLimits(tokens=512, logit_rows=16, sequences=16, context=2048 + 512 + BLOCK_TOKENS)
ANSWERS = ((200, 1),) * 8
STEPS: dict[str, Entries] = {
    "1 answer at 200": ((200, 1),),
    "8 answers at 200": ANSWERS,
    **{f"{tokens} at {context}": ((context, tokens),) for context in (0, 512, 1024, 2048)
       for tokens in (16, 64, 128, 512)},
    "8 answers and 120 at 0": (*ANSWERS, (0, 120)),
    "8 answers and 120 at 512": (*ANSWERS, (512, 120)),
    "3 parts of 100 at 0": ((0, 100),) * 3,
}  # fmt: skip
PRODUCTS = ("linear", "head", "experts")
GROUPS = ("products", "attention", "rest")


def plan_of(entries: Entries, groups: int) -> StepPlan:
    """KV pages are read as they are: numbers do not matter for time."""
    per_sequence = LIMITS.context // BLOCK_TOKENS
    return StepPlan(tuple(
        Entry(
            index, start, tuple(100 + 7 * place % 20_000 for place in range(tokens)),
            (np.arange(per_sequence, dtype=np.int32) + index * per_sequence,) * groups,
            (LogitRow(tokens - 1, start + tokens, Sampling()),),
        )
        for index, (start, tokens) in enumerate(entries)
    ))  # fmt: skip


def measure(model: str, out: Path, threads: int, seconds: float) -> None:
    """Every step once a round, rounds until the time is over: drifts meet all steps alike."""
    program = record(loaded := load(model), STORAGES.get("bf16"))
    blocks = LIMITS.sequences * LIMITS.context // BLOCK_TOKENS
    pools = tuple(
        KvPool(STORAGES.get("bf16"), layers=len(g.layers), kv_heads=g.kv_heads, head_dim=g.head_dim, blocks=blocks)
        for g in program.kv_groups
    )
    runner = Runner(bind(program), pools, limits=LIMITS, threads=threads, clock=WallClock())
    plans = {name: plan_of(entries, len(program.kv_groups)) for name, entries in STEPS.items()}
    kinds = sorted({line.op.kind for line in program})
    begun, rounds = time.monotonic(), 0
    for plan in plans.values():  # first touch
        runner.collect(runner.submit(plan))
    while not rounds or time.monotonic() - begun < seconds:
        watch, found = CpuWatch(), dict[str, Any]()
        for name, plan in plans.items():
            result = runner.collect(runner.submit(plan))
            assert result.line_ns is not None
            found[name] = dict.fromkeys(kinds, 0.0) | {"step": result.ended_s - result.started_s}
            for line in program:
                found[name][line.op.kind] += 1e-9 * float(result.line_ns[line.index])
        with out.open("a") as file:
            file.write(json.dumps({"model": loaded.spec.name, "threads": threads, "foreign": watch.foreign_cpu_share(),
                                   "at": time.time(), "steps": found}) + "\n")  # fmt: skip
        rounds += 1
    runner.close()
    print(f"{rounds} rounds of {len(plans)} steps")


def estimated(estimator: Estimator, entries: Entries) -> dict[str, float]:
    """Seconds by operator kind, and of the whole step without the host's part."""
    shape = batch_shape(plan_of(entries, len(estimator.program.kv_groups)), estimator.program.reaches)
    found: dict[str, float] = {}
    for line, indices in alike(estimator.program):
        seconds = len(indices) * float(estimator.line_seconds(line, line.cost(shape), shape))
        found[line.op.kind] = found.get(line.op.kind, 0.0) + seconds
    return found | {"step": sum(found.values())}


def show(model: str, out: Path, threads: int, is_plain: bool, activations: str) -> list[dict[str, Any]]:
    program = record(describe(model), STORAGES.get("bf16"))
    machine = load_or_measure(threads) if is_plain else calibrated(program, threads, activations)
    if is_plain:
        machine = msgspec.structs.replace(machine, rates={}, efficiency={}, host_s=0.0)
    estimator = Estimator(program, machine, activations)
    rounds = [one for one in map(json.loads, out.read_text().splitlines()) if one["threads"] == threads]
    print(f"{len(rounds)} rounds, foreign CPU share up to {max(one['foreign'] or 0 for one in rounds):.2f}; "
          f"{'calibrated' if machine.rates else 'not calibrated'}")  # fmt: skip
    print("| step | measured, ms: least, median | estimated, ms | median / estimated | products | attention | rest |")
    print("|---" * 7 + "|")
    shown = []
    for name, entries in STEPS.items():
        guess, seen = estimated(estimator, entries), [one["steps"][name] for one in rounds]
        steps = [one["step"] for one in seen]
        row = {"step": name, "least_s": min(steps), "median_s": float(np.median(steps)), "estimated_s": guess["step"]}
        row |= _by_group(seen, guess)
        shown.append(row)
        print(f"| {name} | {1e3 * row['least_s']:.1f}, {1e3 * row['median_s']:.1f} | {1e3 * guess['step']:.1f} | "
              f"{row['median_s'] / guess['step']:.2f} | {' | '.join(row[group] for group in GROUPS)} |")  # fmt: skip
    errors = np.abs(np.log([row["median_s"] / row["estimated_s"] for row in shown]))
    print(f"mean of |log(measured / estimated)|: {errors.mean():.3f}, largest {errors.max():.3f}")
    return shown


def _by_group(seen: Sequence[dict[str, float]], guess: dict[str, float]) -> dict[str, str]:
    """Milliseconds, median measured over estimated."""
    groups = {"products": PRODUCTS, "attention": ("attend",)}
    known = {kind for kinds in groups.values() for kind in kinds} | {"step"}
    groups["rest"] = tuple(kind for kind in guess if kind not in known)
    shown = {}
    for group, kinds in groups.items():
        took = float(np.median([sum(one.get(kind, 0.0) for kind in kinds) for one in seen]))
        thought = sum(guess.get(kind, 0.0) for kind in kinds)
        shown[group] = f"{1e3 * took:.1f} / {1e3 * thought:.1f} = {took / max(thought, 1e-9):.2f}"
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("steps", "show"))
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, default=Path("estimates.jsonl"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--activations", default=DEFAULT)
    parser.add_argument("--plain", action="store_true")
    asked = parser.parse_args()
    if asked.question == "steps":
        measure(asked.model, asked.out, asked.threads, asked.seconds)
    else:
        print(json.dumps(show(asked.model, asked.out, asked.threads, asked.plain, asked.activations)))


if __name__ == "__main__":
    main()

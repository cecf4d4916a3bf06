"""Guessing ahead with a real pair of models on HumanEval prompts (I1, I2, I3): acceptance, speed, and the law.

python bench/speculation.py --target qwen2.5-coder-1.5b --draft qwen2.5-coder-0.5b --prompts HumanEval.jsonl.gz
Plain and guessed runs are interleaved prompt by prompt; ids are compared; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import statistics
import sys
import time
import zipfile
from pathlib import Path

from ridgeline.decode.depth import expected_tokens
from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.calibrate import calibrated
from ridgeline.run.costs import StepCosts
from ridgeline.run.machine import load_or_measure
from ridgeline.run.noise import CpuWatch
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.request import Request, Sampling
from ridgeline.state.sequence import Sequence


class Watch:
    """Seconds of every step after the prompt, by what ran in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"plain": [], "judge": [], "guess": []}

    def on_step(self, plan: StepPlan, result: StepResult) -> None:
        took = result.ended_s - result.started_s
        models = [entry for entry in plan.entries if entry.program == "model"]
        if not models:
            self.seconds["guess"].append(took)
        elif len(plan.entries) == 1 and len(models[0].tokens) == 1 + models[0].tentative:
            self.seconds["judge" if models[0].tentative else "plain"].append(took)

    def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None:
        pass


def prompts_of(path: Path, count: int) -> list[str]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith("HumanEval.jsonl.gz"))
            data = gzip.decompress(wheel.read(name))
    else:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [json.loads(line)["prompt"] for line in data.decode().splitlines() if line]
    return lines[:: max(1, len(lines) // count)][:count]


def run(engine: Engine, request: Request) -> tuple[tuple[int, ...], float, int, int]:
    """(ids, seconds from the first token to the last, guessed, accepted)."""
    engine.add(request)
    tokens: list[int] = []
    first = last = 0.0
    while True:
        for event in engine.step():
            if event.tokens:
                first = first or time.perf_counter()
                last = time.perf_counter()
            tokens += event.tokens
            if event.finish is not None:
                return tuple(tokens), last - first, event.tokens_guessed, event.tokens_accepted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="qwen2.5-coder-1.5b")
    parser.add_argument("--draft", default="qwen2.5-coder-0.5b")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rule", default="same")
    parser.add_argument("--specs", nargs="*", help="instead of the draft: any --spec values")
    asked = parser.parse_args()
    specs = asked.specs or [f"draft:{asked.draft},k={asked.k},rule={asked.rule},adapt=off"]
    texts = prompts_of(asked.prompts, asked.count)
    tokenizer = describe(asked.target).tokenizer()
    if tokenizer is None:
        raise SystemExit("the target has no tokenizer")
    for name in (asked.target, asked.draft):  # the engines' choices of depth ask for the machine that this leaves
        calibrated(record(describe(name), STORAGES.get("bf16")))
    watches = [Watch() for _ in (None, *specs)]
    options = {"model": asked.target, "context": 1024, "max_sequences": 1, "prefix": False}
    engines = [
        build(EngineConfig(**options, spec=spec), observer_factory=lambda parts, watch=watch: watch)
        for spec, watch in zip((None, *specs), watches, strict=True)
    ]
    cpu, rows = CpuWatch(), []
    for number, text in enumerate(texts):
        prompt = tuple(tokenizer.encode(text, add_bos=False, special=False))
        sampling = Sampling(temperature=asked.temperature, seed=number)
        answers = [
            run(engine, Request(f"r{number}", prompt, asked.tokens, sampling, ignore_stop=True)) for engine in engines
        ]
        same = [answer[0] == answers[0][0] for answer in answers[1:]]
        columns = [list(column) for column in zip(*(answer[1:] for answer in answers), strict=True)]
        row = dict(zip(("seconds", "guessed", "accepted"), columns, strict=True))
        rows.append(row | {"prompt_tokens": len(prompt), "same_ids": same})
        print(
            f"{number + 1}/{len(texts)}: " + ", ".join(f"{a[1]:.2f} s" for a in answers) + f", same ids {same}",
            flush=True,
        )
    report = [summary(place, spec, rows, watches, engines, asked) for place, spec in enumerate(specs, 1)]
    foreign = cpu.foreign_cpu_share()
    for line in report:
        print("\n".join(f"{key:>34}: {value}" for key, value in line.items()))
    machine = load_or_measure(engines[0].facts.threads)
    document = {
        "bench": "speculation", "date": str(datetime.date.today()), "machine": machine.fingerprint.cpu,
        "foreign_cpu_share": foreign, "argv": sys.argv[1:], "runs": rows, "summary": report,
    }  # fmt: skip
    print(json.dumps(document))
    return 0


def summary(place: int, spec: str, rows: list, watches: list[Watch], engines: list[Engine], asked) -> dict:
    """Measured beside the law with measured step times, and beside the law with estimated ones."""
    count = asked.tokens - 1
    plain_s, own_s = (sum(row["seconds"][i] for row in rows) for i in (0, place))
    guessed, accepted = (sum(row[key][place] for row in rows) for key in ("guessed", "accepted"))
    judged = len(watches[place].seconds["judge"])
    depth = guessed / judged if judged else 0.0
    rate = acceptance_rate(accepted / judged if judged else 0.0, depth)
    plain, judge, guess = (
        statistics.median(found) if found else 0.0
        for found in (watches[0].seconds["plain"], watches[place].seconds["judge"], watches[place].seconds["guess"])
    )
    result = {
        "spec": spec, "plain tokens/s": count * len(rows) / plain_s, "guessed tokens/s": count * len(rows) / own_s,
        "measured speed-up": plain_s / own_s, "guessed": guessed, "accepted": accepted,
        "acceptance rate (alpha)": rate, "tokens a judgement": (accepted + judged) / judged if judged else 0.0,
        "plain step ms": plain * 1e3, "judging step ms": judge * 1e3, "guessing step ms": guess * 1e3,
        "cost ratio c": guess / plain if plain else 0.0,
        "all ids the same": all(row["same_ids"][place - 1] for row in rows),
    }  # fmt: skip
    if judged:
        whole = expected_tokens(rate, round(depth))
        result["law with measured times"] = whole * plain / (depth * guess + judge)
        result["law as published (verify = 1 step)"] = whole / (1 + depth * result["cost ratio c"])
    estimated = engines[place].scheduler.decoder._depths  # the estimator as the engine itself asks it
    if isinstance(estimated._costs, StepCosts) and judged:
        context = int(statistics.mean(row["prompt_tokens"] for row in rows)) + asked.tokens // 2
        step = estimated.seconds("model", 1, context, 1)
        result["predicted plain step ms"] = step * 1e3
        result["predicted speed-up"] = whole * step / estimated.cycle(round(depth), 1, context)
        result["prediction error"] = result["predicted speed-up"] / result["measured speed-up"] - 1
    return result


def acceptance_rate(accepted: float, depth: float) -> float:
    """The rate at which a chain of `depth` gives this many accepted tokens on average: sum of a^i, i = 1..depth."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**i for i in range(1, round(depth) + 1)) < accepted else (low, middle)
    return low


if __name__ == "__main__":
    sys.exit(main())

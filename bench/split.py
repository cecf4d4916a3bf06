"""Split (E4): what a step takes with a share of the threads, alone and beside another step; and what partition and
order each do to answers.

    python bench/split.py curves SmolLM2-135M-Instruct.Q4_1.gguf
    python bench/split.py ablation SmolLM2-135M-Instruct.Q4_1.gguf [--rates 1.0,1.6] [--repeats 2] [--keep FILE]
                                                                       [--seconds 100]

curves: steps of a prompt and of answers, on 1 and 2 threads, the other stream busy or idle; predicted beside measured.
ablation: partition and order, each alone and both, on one mixed workload; TTFT, and TBT (from token to token). Rounds
are interleaved; after --seconds no run is begun, and with --keep the next call goes on there. Last line of stdout:
one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.engine.build import build, rehearse
from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.streams import StreamsEngine
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.calibrate import calibrated
from ridgeline.perf.replay import ReplaySummary, rehearse_replay, replay
from ridgeline.perf.workload import Job
from ridgeline.run.lanes import Lanes
from ridgeline.run.machine import load_or_measure
from ridgeline.run.noise import CpuWatch
from ridgeline.run.split_costs import Other, SplitCosts
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

CONTEXT, BLOCK = 512, 16
MANY, ONE = "many", "one"
WORK: dict[str, tuple[str, list[tuple[int, int]]]] = {  # lane, (context before, tokens) of every sequence
    "prompt of 128": (MANY, [(0, 128)]),
    "prompt of 512": (MANY, [(0, 512)]),
    "answer of 1": (ONE, [(CONTEXT, 1)]),
    "answers of 8": (ONE, [(CONTEXT, 1)] * 8),
    "answers of 32": (ONE, [(CONTEXT, 1)] * 32),
}
BESIDE = (("prompt of 512", "answers of 8"), ("prompt of 128", "answers of 8"), ("prompt of 512", "answer of 1"),
          ("prompt of 512", "answers of 32"))  # fmt: skip


# -- curves


def plan_of(work: str, first_block: int) -> StepPlan:
    entries, block = [], first_block
    for number, (start, tokens) in enumerate(WORK[work][1]):
        count = -(-(start + tokens) // BLOCK)
        blocks = np.arange(block, block + count, dtype=np.int32)
        block += count
        ids = tuple(range(1000, 1000 + tokens))
        row = LogitRow(tokens - 1, start + tokens, Sampling())
        entries.append(Entry(number, start, ids, (blocks,), (row,)))
    return StepPlan(tuple(entries))


def seconds_alone(lanes: Lanes, plan: StepPlan, lane: str, share: float, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        lanes.start(lane, plan, share)
        _, result = lanes.finish()
        found.append(result.ended_s - result.started_s)
    return found


def seconds_beside(lanes: Lanes, many: StepPlan, one: StepPlan, share: float) -> tuple[list[float], list[float]]:
    """Of two steps of the first stream, and all of the second that lie within them."""
    lanes.start(MANY, many, share)
    lanes.start(ONE, one, 1.0 - share)
    longs, shorts = [], []
    while len(longs) < 2:
        lane, result = lanes.finish()
        took = result.ended_s - result.started_s
        if lane == ONE:
            shorts.append(took)
            lanes.start(ONE, one, 1.0 - share)
        else:
            longs.append(took)
            if len(longs) < 2:
                lanes.start(MANY, many, share)
    lanes.finish()  # the last one ran in part alone
    return longs, shorts


def curves(model: str, rounds: int) -> dict[str, Any]:
    config = EngineConfig(model, place="split", threads=2, context=1024, max_sequences=64, kv_bytes=512 << 20)
    engine = build(config)
    assert isinstance(engine, StreamsEngine) and isinstance(engine.lanes, Lanes)
    lanes, machine = engine.lanes, load_or_measure(2)
    plans = {work: plan_of(work, 0 if lane == MANY else 64) for work, (lane, _) in WORK.items()}
    seen: dict[tuple[str, int, str], list[float]] = {}
    watch = CpuWatch()
    for turn in range(rounds + 1):
        found: dict[tuple[str, int, str], list[float]] = {}
        for work, (lane, _) in WORK.items():
            steps = 1 if lane == MANY else 8
            for share in (0.5, 1.0):
                found[work, round(2 * share), "alone"] = seconds_alone(lanes, plans[work], lane, share, steps)
        for long, short in BESIDE:
            longs, shorts = seconds_beside(lanes, plans[long], plans[short], 0.5)
            found[long, 1, short], found[short, 1, long] = longs, shorts
        for key, values in found.items():
            if turn:  # the first one warms up
                seen.setdefault(key, []).append(statistics.median(values))
    foreign = watch.foreign_cpu_share()
    engine.close()
    program = record(describe(model), STORAGES.get(config.storage))
    costs = SplitCosts(program, lambda: machine, config.activations)
    rows = []
    for (work, threads, beside), values in seen.items():
        other = None if beside == "alone" else Other(plans[beside], 0.5)
        rows.append({
            "work": work, "threads": threads, "beside": beside, "median_s": statistics.median(values),
            "least_s": min(values), "predicted_s": costs.under(plans[work], threads / 2, other),
        })  # fmt: skip
    whole = {row["work"]: row for row in rows if row["threads"] == 2}
    for row in rows:
        ratios = [a / b for a, b in zip(seen[row["work"], row["threads"], row["beside"]],
                                        seen[row["work"], 2, "alone"], strict=True)]  # fmt: skip
        row["times_two_threads"] = statistics.median(ratios)
        row["predicted_times"] = row["predicted_s"] / whole[row["work"]]["predicted_s"]
        print(f"{row['work']:14} {row['threads']} thread(s) beside {row['beside']:14} "
              f"{1e3 * row['median_s']:7.1f} ms (least {1e3 * row['least_s']:.1f}, predicted "
              f"{1e3 * row['predicted_s']:.1f})  x {row['times_two_threads']:.2f} of 2 threads alone "
              f"(predicted {row['predicted_times']:.2f})")  # fmt: skip
    compute, memory = costs.curves()
    print(f"one thread has {compute.speed(0.5):.2f} of the arithmetic and {memory.speed(0.5):.2f} of the bandwidth")
    return {"rows": rows, "rounds": rounds, "foreign_cpu_share": foreign, "one_thread": [compute[1], memory[1]]}


# -- ablation

ROWS: dict[str, dict[str, Any]] = {
    "neither": {"place": "chunked"},
    "order alone": {"place": "chunked", "policy": "remaining"},
    "partition alone": {"place": "split:policy=fcfs"},
    "both": {"place": "split"},
}
FIGURES: dict[str, Callable[[ReplaySummary], float]] = {
    "ttft_mean_s": lambda s: s.ttft_s.mean if s.ttft_s else 0.0,
    "ttft_p50_s": lambda s: s.ttft_s.p50 if s.ttft_s else 0.0,
    "ttft_p99_s": lambda s: s.ttft_s.p99 if s.ttft_s else 0.0,
    "tbt_mean_s": lambda s: s.itl_s.mean if s.itl_s else 0.0,
    "tbt_p50_s": lambda s: s.itl_s.p50 if s.itl_s else 0.0,
    "tbt_p99_s": lambda s: s.itl_s.p99 if s.itl_s else 0.0,
    "tokens_per_s": lambda s: s.output_tokens_per_s,
}


def jobs_of(rate: float, repetition: int, count: int = 16) -> list[Job]:
    """Of five requests three are short questions and two long documents; Poisson arrivals."""
    shape = np.random.default_rng([3, repetition])
    ids = np.random.default_rng([repetition, 11])
    found, at = [], 0.0
    for number in range(count):
        is_long = number % 5 in (1, 3)
        prompt = int(np.clip(shape.lognormal(np.log(800 if is_long else 90), 0.35), 16, 1600))
        output = int(np.clip(shape.lognormal(np.log(40), 0.4), 8, 96))
        found.append(Job(tuple(ids.integers(1000, 30_000, prompt).tolist()), output, at))
        at += float(shape.exponential(1 / rate))
    return found


def config_of(model: str, row: str, chunk: int) -> EngineConfig:
    """Without shared beginnings: the same requests come at every rate."""
    return EngineConfig(
        model, threads=2, context=2048, max_sequences=32, kv_bytes=512 << 20, chunk=chunk, step_tokens=512,
        prefix=False, **ROWS[row],
    )  # fmt: skip


def ablation(
    model: str, rates: list[float], repeats: int, chunk: int, keep: Path | None, seconds: float
) -> dict[str, Any]:
    """Rows in turns; a turn that is kept already is not run again, and none is begun after so many seconds."""
    ends = time.perf_counter() + seconds
    kept = [json.loads(line) for line in keep.read_text().splitlines()] if keep is not None and keep.exists() else []
    done = {(one["row"], one["rate"], one["repetition"]) for one in kept}
    wanted = [one for one in itertools.product(range(repeats), rates, ROWS) if (one[2], one[1], one[0]) not in done]
    clients: dict[str, EngineClient] = {}
    try:
        for number, (repetition, rate, row) in enumerate(wanted):
            if time.perf_counter() > ends:
                print(f"{len(wanted) - number} runs left")
                return {"runs": kept}
            if row not in clients:
                clients[row] = EngineClient(config_of(model, row, chunk))
                replay(clients[row], [Job(tuple(range(100, 164)), 4)] * 2)
            watch, began = CpuWatch(), time.perf_counter()
            run = replay(clients[row], jobs_of(rate, repetition))
            ids = [one.ids for one in run.requests]
            kept.append({
                "row": row, "rate": rate, "repetition": repetition, "chunk": chunk, "ids": hash(tuple(ids)),
                "seconds": time.perf_counter() - began, "foreign_cpu_share": watch.foreign_cpu_share(),
                **{name: figure(run.summary) for name, figure in FIGURES.items()},
            })  # fmt: skip
            if keep is not None:
                with keep.open("a") as file:
                    file.write(json.dumps(kept[-1]) + "\n")
    finally:
        for client in clients.values():
            client.close()
    return {"rows": [_row(model, row, rate, chunk, kept) for rate in rates for row in ROWS], "runs": kept}


def _row(model: str, row: str, rate: float, chunk: int, kept: list[dict[str, Any]]) -> dict[str, Any]:
    runs = [one for one in kept if one["row"] == row and one["rate"] == rate]
    machine = calibrated(record(describe(model), STORAGES.get("bf16")), 2)
    guesses = []
    for one in runs:
        clock = VirtualClock()
        engine = rehearse(config_of(model, row, chunk), machine, clock)
        guesses.append(rehearse_replay(engine, clock, jobs_of(rate, one["repetition"])).summary)
    found: dict[str, Any] = {"row": row, "rate": rate, "runs": len(runs)}
    if not runs:
        return found
    for name, figure in FIGURES.items():
        found[name] = statistics.median(one[name] for one in runs)
        found[f"predicted_{name}"] = statistics.median(figure(one) for one in guesses)
    same = {one["repetition"]: one["ids"] for one in kept if one["row"] == "neither" and one["rate"] == rate}
    found["same_tokens"] = all(one["ids"] == same.get(one["repetition"], one["ids"]) for one in runs)
    found["foreign_cpu_share"] = max(one["foreign_cpu_share"] or 0.0 for one in runs)
    shown = "  ".join(
        f"{name[:-2]} {1e3 * found[name]:.0f} ({1e3 * found['predicted_' + name]:.0f}) ms"
        for name in FIGURES if name.endswith("_s") and name != "tokens_per_s"
    )  # fmt: skip
    print(
        f"{rate:4} /s  {row:16} {shown}  {found['tokens_per_s']:.1f} ({found['predicted_tokens_per_s']:.1f}) tokens/s"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curves", "ablation"))
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--rates", default="1.0,1.6", help="requests a second")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no run is begun")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--keep", type=Path, help="a file of runs that are done; more are added")
    asked = parser.parse_args()
    if asked.what == "curves":
        result = curves(asked.model, asked.rounds)
    else:
        rates = [float(rate) for rate in asked.rates.split(",")]
        result = ablation(asked.model, rates, asked.repeats, asked.chunk, asked.keep, asked.seconds)
    machine = load_or_measure(2)
    print(json.dumps({"what": asked.what, "model": asked.model, "machine": machine.fingerprint.cpu, **result}))


if __name__ == "__main__":
    main()

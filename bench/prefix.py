"""What sharing beginnings is worth (C5, C6, C7): W4 with and without, inside the first wave; TTFT of a request most of
whose prompt was computed before, beside the estimated share of what is left; from which length on a tier pays (B10).

python bench/prefix.py smollm2-135m [--repeats 3] [--threads N]     the last line of stdout is one JSON document
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from ridgeline.engine.build import build, rehearse
from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.clock import VirtualClock
from ridgeline.ops.batch import BatchShape
from ridgeline.perf.account import StepTable
from ridgeline.perf.replay import rehearse_replay, replay
from ridgeline.perf.workload import Job, named_workload
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import Machine, load_or_measure

SHARED, OWN = 512, 32
TIERS = {"host_kv_bytes": 1 << 28, "disk_kv_bytes": 1 << 28}


def jobs_of(name: str, repetition: int) -> list[Job]:
    jobs = named_workload(name, 30_000, repetition)
    if jobs is None:
        raise SystemExit(f"no workload {name}")
    return jobs


def wave(model: str, threads: int | None, repeats: int, machine: Machine) -> list[dict[str, Any]]:
    """W4 on a fresh engine each time, with and without sharing in turns."""
    runs: dict[bool, list[Any]] = {True: [], False: []}
    reports: dict[bool, dict[str, Any]] = {}
    for repetition in range(repeats):
        for prefix in (True, False):
            with EngineClient(EngineConfig(model, threads=threads, prefix=prefix, context=1024)) as client:
                replay(client, [Job(tuple(range(100, 132)), 4)])
                client.account(reset=True)
                runs[prefix].append(replay(client, jobs_of("W4", repetition)).summary)
                table = client.account(StepTable)
                reports[prefix] = {"steps": len(table.step_times()), "memory": table.memory}
                reports[prefix]["tokens_computed"] = int(table.shape_rows()[:, 2].sum())
    rows = []
    for prefix, summaries in runs.items():
        clock = VirtualClock()
        config = EngineConfig(model, threads=threads, prefix=prefix, context=1024)
        guess = rehearse_replay(rehearse(config, machine, clock), clock, jobs_of("W4", 0)).summary
        rows.append({
            "prefix": prefix, **reports[prefix],
            "tokens_per_s": statistics.median(one.output_tokens_per_s for one in summaries),
            "ttft_p50_s": statistics.median(one.ttft_s.p50 for one in summaries),
            "predicted_tokens_per_s": guess.output_tokens_per_s, "predicted_ttft_p50_s": guess.ttft_s.p50,
        })  # fmt: skip
    return rows


def first_token(model: str, threads: int | None, repeats: int, machine: Machine) -> dict[str, Any]:
    """One request alone: its prompt new, and its first 512 of 544 tokens computed before."""
    cold, warm = [], []
    with EngineClient(EngineConfig(model, threads=threads, context=1024)) as client:
        for repetition in range(repeats + 1):
            one, other, *_ = jobs_of("W4", 100 + repetition)
            cold.append(replay(client, [one]).requests[0].ttft_s)
            warm.append(replay(client, [other]).requests[0].ttft_s)
    engine = build(EngineConfig(model, threads=threads, context=1024))
    estimator = Estimator(engine.runner.bound.program, machine)  # type: ignore[attr-defined]
    engine.close()
    seconds = [
        sum(float(estimator.step_seconds(BatchShape.of([entry], 1, estimator.program.reaches))) for entry in entries)
        for entries in ([(0, 512), (512, OWN)], [(SHARED, OWN)])
    ]
    return {
        "cold_s": statistics.median(cold[1:]), "warm_s": statistics.median(warm[1:]),
        "predicted_cold_s": seconds[0], "predicted_warm_s": seconds[1],
    }  # fmt: skip


def break_even(model: str, threads: int | None) -> dict[str, int]:
    engine = build(EngineConfig(model, threads=threads, context=1024, **TIERS))  # type: ignore[arg-type]
    report: Any = engine.scheduler.memory.report()
    engine.close()
    return dict(report["break even"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    machine = load_or_measure(asked.threads)
    rows = wave(asked.model, asked.threads, asked.repeats, machine)
    for row in rows:
        print(
            f"W4 {'shared ' if row['prefix'] else 'alone  '} {row['tokens_per_s']:7.1f} output tokens/s "
            f"(predicted {row['predicted_tokens_per_s']:.1f}), TTFT p50 {row['ttft_p50_s']:.3f} s (predicted "
            f"{row['predicted_ttft_p50_s']:.3f}), {row['tokens_computed']} tokens computed in {row['steps']} steps, "
            f"{row['memory']}"
        )
    first = first_token(asked.model, asked.threads, asked.repeats, machine)
    print(
        f"one request of {SHARED} + {OWN} tokens: first token after {first['cold_s']:.3f} s, {first['warm_s']:.3f} s "
        f"when {SHARED} were computed before: {first['warm_s'] / first['cold_s']:.3f} of it, predicted "
        f"{first['predicted_warm_s'] / first['predicted_cold_s']:.3f}"
    )
    even = break_even(asked.model, asked.threads)
    print(f"loading pays from {even} tokens on (0: never)")
    print(json.dumps({
        "bench": "prefix", "model": asked.model, "wave": rows, "first_token": first, "break_even": even,
        "cpu": machine.fingerprint.cpu, "cores": machine.fingerprint.cores,
    }))  # fmt: skip


if __name__ == "__main__":
    main()

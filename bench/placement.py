"""Who computes what where (E1, E8, E11): every place on three small workloads, predicted beside measured.

python bench/placement.py run MODEL --out FILE [--workloads ...] [--places ...] [--repeats 2] [--seconds 220]
python bench/placement.py show MODEL --out FILE          predictions, and the table; last line: one JSON document
python bench/placement.py pace MODEL [--targets 30,50,100]   gaps under `chunked:tbt=`
python bench/placement.py jobs MODEL --workloads chat --out chat.jsonl   for `--place auto:workload=chat.jsonl`

`run` stops after so many seconds and goes on where it stopped when it is called again; places take turns. `show`
predicts every run with this machine's calibration (made now if there is none) at the pace of prompts sent around it.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import itertools
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ridgeline.cluster.build import connect
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import PLACES
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.account import StepTable
from ridgeline.perf.calibrate import calibrated
from ridgeline.perf.replay import replay, spread
from ridgeline.perf.workload import Job
from ridgeline.run.noise import CpuWatch
from ridgeline.sim.placement import Times, predict, slower

WANTED = (
    "serial", "chunked", "chunked:tbt=50ms", "corun", "split", "disaggregated", "disaggregated:link=tcp", "auto",
)  # fmt: skip
TRACES = Path(__file__).parents[2] / "shared" / "data" / "traces"  # beside the checkout; else --traces
CHAT, LONG = "azure_2023_conv.csv.gz", "vidur_arxiv_summarization_lengths.csv.gz"
SHORTER = {CHAT: 6, LONG: 4}  # lengths of the traces are divided: a model of 135M on two cores
MOST_PROMPT, MOST_OUTPUT, LEAST = 1500, 96, 8
WORKLOADS = {"chat": (20, 1.0, 2.5), "long": (6, 0.0, 0.6), "mixed": (12, 0.6, 1.2)}  # requests, of CHAT, a second
PROBE_TOKENS, PROBES = 192, 3  # prompts before and after a run
TPOT_STEPS, TTFT_STEPS = 5, 200  # the goal: multiples of the undisturbed step of one answer alone


def jobs_of(name: str, repetition: int, traces: Path) -> list[Job]:
    """Lengths drawn from the traces, Poisson arrivals, both the same in every repetition; token ids differ."""
    count, share, rate = WORKLOADS[name]
    shape, ids = np.random.default_rng([7, *name.encode()]), np.random.default_rng([repetition, *name.encode()])
    kinds = [CHAT if number < round(share * count) else LONG for number in range(count)]
    shape.shuffle(kinds)
    rows = {kind: _lengths(traces / kind) for kind in set(kinds)}
    arrivals = np.cumsum(shape.exponential(1 / rate, count))
    jobs = []
    for kind, at in zip(kinds, arrivals - arrivals[0], strict=True):
        prompt, output = rows[kind][int(shape.integers(len(rows[kind])))]
        prompt = min(max(prompt // SHORTER[kind], LEAST), MOST_PROMPT)
        output = min(max(output // SHORTER[kind], LEAST), MOST_OUTPUT)
        jobs.append(Job(tuple(ids.integers(1000, 30_000, prompt).tolist()), output, float(at)))
    return jobs


def _lengths(path: Path) -> list[tuple[int, int]]:
    with gzip.open(path, "rt") as file:
        names = next(reader := csv.reader(file))
        at = [next(i for i, name in enumerate(names) if name in kinds) for kinds in PAIRS]
        return [(int(row[at[0]]), int(row[at[1]])) for row in itertools.islice(reader, 5000)]


PAIRS = (("ContextTokens", "num_prefill_tokens"), ("GeneratedTokens", "num_decode_tokens"))


def config_of(model: str, place: str, **options: Any) -> EngineConfig:
    return EngineConfig(model, context=2048, max_sequences=32, kv_bytes=1 << 28, place=place, **options)


def places_there(wanted: list[str]) -> list[str]:
    """Those that this build knows."""
    return [place for place in wanted if place.partition(":")[0] in PLACES]


# -- measured


def undisturbed_step(client: Any) -> float:
    """Median seconds from token to token of one answer alone."""
    gaps = replay(client, [Job(tuple(range(100, 164)), 64)]).requests[0].gaps_s
    return float(np.median(gaps))


def probe(client: Any) -> list[float]:
    """First tokens of prompts that nobody else runs beside, nor has a beginning of: the pace of this moment."""
    ids = np.random.default_rng(time.monotonic_ns())
    jobs = [Job(tuple(ids.integers(1000, 30_000, PROBE_TOKENS).tolist()), 1) for _ in range(PROBES)]
    return [replay(client, [job]).requests[0].ttft_s or 0.0 for job in jobs]


def predicted(model: str, place: str, jobs: list[Job], pace: float = 1.0, **options: Any) -> Times:
    """With this build's kernels calibrated for this model (now, where they are not)."""
    program = record(describe(model), STORAGES.get("bf16"))
    return predict(config_of(model, place, **options), jobs, lambda threads: slower(calibrated(program, threads), pace))


def expected_probe_s(model: str, place: str) -> float:
    return predicted(model, place, [Job(tuple(range(1000, 1000 + PROBE_TOKENS)), 1)]).ttft_s[0]


def pace_of(model: str, place: str, rows: list[dict[str, Any]]) -> float:
    """Median probe around these runs, over what is predicted of one; 1 for runs without."""
    probes = [seconds for one in rows for seconds in one.get("probes_s", ())]
    if not probes:
        return 1.0
    return float(np.median(probes)) / expected_probe_s(model, place)


def run(model: str, out: Path, wanted: list[tuple[str, str, int]], seconds: float, traces: Path) -> None:
    """Appends a line a run to `out`; runs that are there are not run again. wanted: workload, place, repetition."""
    begun = time.monotonic()
    there = {(one["workload"], one["place"], one["repetition"]) for one in read(out)}
    todo = [key for key in wanted if key not in there]
    clients: dict[str, Any] = {}
    try:
        for workload, place, repetition in todo:
            if time.monotonic() - begun > seconds:
                break
            if place not in clients:
                expected_probe_s(model, place)  # calibrates what is not, while the machine is as quiet as for the runs
                clients[place] = connect(config_of(model, place))
                replay(clients[place], [Job(tuple(range(100, 164)), 4)])
            if place == "chunked" and not any(one["workload"] == "alone" for one in read(out)):
                _append(out, {"workload": "alone", "place": place, "repetition": 0,
                              "step_s": undisturbed_step(clients[place])})  # fmt: skip
            watch, probes, begun_s = CpuWatch(), probe(clients[place]), time.perf_counter()
            found = replay(clients[place], jobs_of(workload, repetition, traces))
            probes += probe(clients[place])
            ids = [request.ids for request in found.requests]
            times = Times(
                found.summary.wall_s, found.summary.output_tokens, [one.ttft_s or 0.0 for one in found.requests],
                [one.tpot_s for one in found.requests], [gap for one in found.requests for gap in one.gaps_s],
                found.summary.failed,
            )  # fmt: skip
            _append(out, {
                "workload": workload, "place": place, "repetition": repetition, "foreign": watch.foreign_cpu_share(),
                "ids": hashlib.sha256(json.dumps(ids).encode()).hexdigest(), "times": msgspec.to_builtins(times),
                "probes_s": probes,
                "switches": switches_of(clients[place], begun_s) if place.startswith("auto") else [],
            })  # fmt: skip
            print(f"{workload:6} {place:24} {repetition}  {found.summary.wall_s:.1f} s", flush=True)
    finally:
        for client in clients.values():
            client.close()
    there = {(one["workload"], one["place"], one["repetition"]) for one in read(out)}
    print(f"{len(set(wanted) - there)} runs left")


def switches_of(client: Any, since_s: float) -> list[dict[str, Any]]:
    """What the engine switched since then: when, why, forecast and outcome."""
    log = client.account(StepTable).choices["log"]
    return [one | {"at_s": one["at_s"] - since_s} for one in log if one["at_s"] >= since_s]


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def _append(out: Path, row: dict[str, Any]) -> None:
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


# -- the table


def figures(runs: list[Times], step_s: float) -> dict[str, float]:
    """Of all runs together. goodput: requests a second within both goals; kept: their share."""
    good = total = 0
    for one in runs:
        for ttft, tpot in zip(one.ttft_s, one.tpot_s, strict=True):
            total += 1
            good += 0 < ttft <= TTFT_STEPS * step_s and (tpot is None or tpot <= TPOT_STEPS * step_s)
    wall = sum(one.wall_s for one in runs)
    ttft = spread([value for one in runs for value in one.ttft_s])
    tpot, gaps = spread([v for one in runs for v in one.tpot_s]), spread([v for one in runs for v in one.gaps_s])
    assert ttft is not None and tpot is not None and gaps is not None
    return {
        "tokens_per_s": sum(one.output_tokens for one in runs) / wall, "ttft_p50_s": ttft.p50, "ttft_p99_s": ttft.p99,
        "tpot_p50_ms": 1e3 * tpot.p50, "tpot_p99_ms": 1e3 * tpot.p99, "gap_p99_ms": 1e3 * gaps.p99,
        "goodput_per_s": good / wall, "kept": good / total,
    }  # fmt: skip


HEADS = (
    "workload", "place", "runs", "tokens/s", "TTFT p50, p99, s", "TPOT p50, p99, ms", "gap p99, ms", "goodput, /s",
    "kept", "pace", "foreign",
)  # fmt: skip


def show(model: str, out: Path, traces: Path) -> dict[str, Any]:
    rows = read(out)
    step_s = next(one["step_s"] for one in rows if one["workload"] == "alone")
    rows = [one for one in rows if one["workload"] != "alone"]
    shown = []
    print(f"undisturbed step {1e3 * step_s:.1f} ms; goals: TTFT {TTFT_STEPS * step_s:.2f} s, TPOT "
          f"{1e3 * TPOT_STEPS * step_s:.0f} ms")  # fmt: skip
    print(f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|")
    ids = {(one["workload"], one["repetition"], one["place"]): one["ids"] for one in rows}
    for workload, place in dict.fromkeys((one["workload"], one["place"]) for one in rows):
        own = [one for one in rows if (one["workload"], one["place"]) == (workload, place)]
        measured = figures([msgspec.convert(one["times"], Times) for one in own], step_s)
        jobs, paces = jobs_of(workload, 0, traces), [1.0] * len(own)
        try:
            paces = [pace_of(model, place, [one]) for one in own]
            guessed = figures([predicted(model, place, jobs, pace) for pace in paces], step_s)
            undisturbed = figures([predicted(model, place, jobs)], step_s)
        except UserError:
            guessed = undisturbed = dict.fromkeys(measured, float("nan"))
        pace = float(np.mean(paces))
        same = all(
            ids[workload, one["repetition"], place] == ids.get((workload, one["repetition"], "chunked")) for one in own
        )
        failed, foreign = sum(one["times"]["failed"] for one in own), max(one["foreign"] or 0.0 for one in own)
        m, g = measured, guessed
        print(
            f"| {workload} | {place} | {len(own)} | {m['tokens_per_s']:.1f} ({g['tokens_per_s']:.1f}) | "
            f"{m['ttft_p50_s']:.2f}, {m['ttft_p99_s']:.2f} ({g['ttft_p50_s']:.2f}, {g['ttft_p99_s']:.2f}) | "
            f"{m['tpot_p50_ms']:.0f}, {m['tpot_p99_ms']:.0f} ({g['tpot_p50_ms']:.0f}, {g['tpot_p99_ms']:.0f}) | "
            f"{m['gap_p99_ms']:.0f} ({g['gap_p99_ms']:.0f}) | {m['goodput_per_s']:.2f} ({g['goodput_per_s']:.2f}) | "
            f"{m['kept']:.0%} ({g['kept']:.0%}) | {pace:.2f} | "
            f"{foreign:.0%}{'' if same and not failed else ' OTHER TOKENS'} |"
        )
        shown.append({"workload": workload, "place": place, "measured": m, "predicted": g, "same_tokens": same,
                      "pace": pace, "predicted_undisturbed": undisturbed, "failed": failed,
                      "foreign": foreign})  # fmt: skip
        for one in [switch for run in own for switch in run.get("switches", ())]:
            print(f"    {one['at_s']:.1f} s: {one['before']} -> {one['after']}: {one['why']}; {one['outcome']}")
    return {"step_s": step_s, "rows": shown}


# -- a chunk chosen from the estimate


def pace(model: str, targets: list[float], repeats: int) -> list[dict[str, Any]]:
    """Three answers of 160 tokens, and a prompt of 700 every 0.8 s beside them: gaps of the three."""
    ids = np.random.default_rng(5)
    jobs = [Job(tuple(ids.integers(1000, 30_000, 40).tolist()), 160) for _ in range(3)]
    jobs += [Job(tuple(ids.integers(1000, 30_000, 700).tolist()), 2, 0.2 + 0.8 * n) for n in range(5)]
    places = ["chunked", *(f"chunked:tbt={target:g}ms" for target in targets)]
    clients = {place: connect(config_of(model, place, prefix=False)) for place in places}
    found: dict[str, list[Any]] = {place: [] for place in places}
    watch = CpuWatch()
    try:
        for _ in range(repeats):
            for place in places:
                found[place].append(replay(clients[place], jobs))
    finally:
        for client in clients.values():
            client.close()
    rows = []
    for place in places:
        gaps = spread([gap for one in found[place] for request in one.requests[:3] for gap in request.gaps_s])
        first = spread([request.ttft_s for one in found[place] for request in one.requests[3:]])
        guess = predicted(model, place, jobs, prefix=False)
        expected = spread(guess.gaps_s)
        assert gaps is not None and first is not None and expected is not None
        rows.append({"place": place, "gap_p50_s": gaps.p50, "gap_p90_s": gaps.p90, "gap_p99_s": gaps.p99,
                     "gap_n": gaps.n, "ttft_p50_s": first.p50, "predicted_gap_p99_s": expected.p99,
                     "foreign": watch.foreign_cpu_share()})  # fmt: skip
        print(f"{place:20} {gaps.n} gaps: p50, p90, p99 {1e3 * gaps.p50:.1f}, {1e3 * gaps.p90:.1f}, "
              f"{1e3 * gaps.p99:.1f} ms (predicted p99 {1e3 * expected.p99:.1f}); TTFT {first.p50:.2f} s")  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("run", "show", "pace", "jobs"))
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, default=Path("placement.jsonl"))
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--places", default=";".join(WANTED), help="separated by semicolons; those there are")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=220.0)
    parser.add_argument("--targets", default="30,50,100", help="milliseconds")
    asked = parser.parse_args()
    if asked.question == "run":
        places = places_there(asked.places.split(";"))
        wanted = [(w, p, r) for r in range(asked.repeats) for w in asked.workloads.split(",") for p in places]
        run(asked.model, asked.out, wanted, asked.seconds, asked.traces)
    elif asked.question == "show":
        print(json.dumps(show(asked.model, asked.out, asked.traces)))
    elif asked.question == "jobs":
        jobs = [job for name in asked.workloads.split(",") for job in jobs_of(name, 0, asked.traces)]
        lines = [{"prompt_ids": job.prompt, "output_tokens": job.output_tokens, "arrival_s": job.arrival_s}
                 for job in jobs]  # fmt: skip
        asked.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        print(json.dumps(pace(asked.model, [float(one) for one in asked.targets.split(",")], asked.repeats)))


if __name__ == "__main__":
    main()

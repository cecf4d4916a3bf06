"""Who computes what where (E8, E9): serial, chunked and disaggregated on small workloads, predicted beside measured;
and the link rate from which on handing state on pays, predicted and found on a throttled link.

python bench/placement.py table MODEL [--workloads chat,long,mixed] [--repeats 3]
python bench/placement.py link MODEL [--tokens 448] [--rates 0.5,0.7,1,1.4,2]     last line of stdout: one JSON document
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import statistics
import time
from typing import Any

import numpy as np

from ridgeline.cluster.build import configs_of, connect
from ridgeline.cluster.cluster import DECODE, PREFILL
from ridgeline.engine.build import rehearse
from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import Place, make_place
from ridgeline.kit.clock import VirtualClock
from ridgeline.llm import LLM
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.replay import Replay, rehearse_replay, replay, spread
from ridgeline.perf.workload import Job
from ridgeline.run.break_even import LoadOrCompute
from ridgeline.run.costs import StepCosts
from ridgeline.run.machine import load_or_measure
from ridgeline.run.noise import CpuWatch
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request
from ridgeline.state.transfer import Parcel

PLACES = ("serial", "chunked", "chunked-128", "disaggregated", "disaggregated:link=tcp")
SHM_BYTES_PER_S = 1.5e9  # assumed of an unthrottled link: two copies and two checksums of a shared core
SHOWN = (("tokens_per_s", 1), ("ttft_p50_s", 1e3), ("ttft_p99_s", 1e3), ("tpot_p50_s", 1e3), ("tpot_p99_s", 1e3))  # ms
WORKLOADS = {  # requests, mean prompt, mean output, requests a second
    "chat": (24, 160, 48, 3.0),
    "long": (8, 900, 32, 0.8),
    "mixed": (16, 400, 40, 1.6),
}


def jobs_of(name: str, repetition: int) -> list[Job]:
    """Lognormal lengths, Poisson arrivals; ids differ in every repetition."""
    count, prompt, output, rate = WORKLOADS[name]
    shape, ids = np.random.default_rng(7), np.random.default_rng([repetition, *name.encode()])
    lengths = [
        np.clip(np.rint(shape.lognormal(np.log(mean) - 0.18, 0.6, count)), 8, 1500).astype(int)
        for mean in (prompt, output)
    ]
    arrivals = np.cumsum(shape.exponential(1 / rate, count))
    return [
        Job(tuple(ids.integers(1000, 30_000, prompt).tolist()), int(output), float(at))
        for prompt, output, at in zip(*lengths, arrivals, strict=True)
    ]


def config_of(model: str, place: str) -> EngineConfig:
    name, _, chunk = place.partition("-")
    options: dict[str, Any] = {"chunk": int(chunk)} if chunk.isdigit() else {}
    return EngineConfig(
        model, context=2048, max_sequences=32, kv_bytes=1 << 30, place=name if options else place, **options
    )


# -- measured


class Placed:
    """One place's engine(s), as replay wants them."""

    def __init__(self, model: str, place: str) -> None:
        self.client = connect(config_of(model, place))
        self.place = place

    def run(self, jobs: list[Job]) -> Replay:
        return replay(self.client, jobs)


# -- predicted


def predict(model: str, place: str, jobs: list[Job]) -> dict[str, float]:
    config = config_of(model, place)
    where = make_place(config.place)
    if where.is_apart:
        return predict_apart(config, where, jobs)
    clock = VirtualClock()
    summary = rehearse_replay(rehearse(config, load_or_measure(2), clock), clock, jobs).summary
    return figures(summary)


def predict_apart(config: EngineConfig, place: Place, jobs: list[Job]) -> dict[str, float]:
    """First all prompts on one rehearsed engine, then everything else on another: nothing goes back between them."""
    parts = configs_of(config, place)
    first, _ = _rehearsed(parts[PREFILL], [(job.arrival_s, job, ()) for job in jobs], hands_on=True)
    program = record(describe(config.model), STORAGES.get(config.storage))
    per_token = sum(group.bytes_per_token for group in program.kv_groups)
    rate = place.rate or SHM_BYTES_PER_S
    arrivals = sorted(
        (first[index] + len(job.prompt) * per_token / rate, index)
        for index, job in enumerate(jobs)
        if job.output_tokens > 1
    )
    order = [index for _, index in arrivals]
    _, last = _rehearsed(parts[DECODE], [(at, jobs[index], (0,)) for at, index in arrivals])
    ends = dict(zip(order, last, strict=True))
    ttft = [first[index] - job.arrival_s for index, job in enumerate(jobs)]
    tpot = [(ends[index] - first[index]) / (job.output_tokens - 1) for index, job in enumerate(jobs) if index in ends]
    wall = max([*ends.values(), *first]) - jobs[0].arrival_s
    times, gaps = spread(ttft), spread(tpot)
    assert times is not None and gaps is not None
    return {
        "tokens_per_s": sum(job.output_tokens for job in jobs) / wall, "ttft_p50_s": times.p50, "ttft_p99_s": times.p99,
        "tpot_p50_s": gaps.p50, "tpot_p99_s": gaps.p99,
    }  # fmt: skip


def _rehearsed(
    config: EngineConfig, asked: list[tuple[float, Job, tuple[int, ...]]], hands_on: bool = False
) -> tuple[list[float], list[float]]:
    """(time of the first event, of the last) of everything asked, on one engine of one thread's machine."""
    clock = VirtualClock()
    engine = rehearse(config, load_or_measure(config.threads or 1), clock)
    first, last, sent = [0.0] * len(asked), [0.0] * len(asked), 0
    while sent < len(asked) or engine.has_work:
        if not engine.has_work and asked[sent][0] > clock.now():
            clock.advance(asked[sent][0] - clock.now())
        while sent < len(asked) and asked[sent][0] <= clock.now() + 1e-12:
            at, job, known = asked[sent]
            parcel = Parcel(1 << 40, len(job.prompt)) if known else None
            request = Request(str(sent), job.prompt, job.output_tokens, ignore_stop=True, arrival_s=at)
            engine.add(request, known=known, parcel=parcel, hands_on=hands_on)
            sent += 1
        for event in engine.step():
            index = int(event.request)
            first[index] = first[index] or event.at_s
            last[index] = event.at_s
            if hands_on:
                engine.scheduler.let_go(event.request)
    return first, last


def figures(summary: Any) -> dict[str, float]:
    return {
        "tokens_per_s": summary.output_tokens_per_s, "ttft_p50_s": summary.ttft_s.p50, "ttft_p99_s": summary.ttft_s.p99,
        "tpot_p50_s": summary.tpot_s.p50, "tpot_p99_s": summary.tpot_s.p99,
    }  # fmt: skip


def table(model: str, workloads: list[str], places: list[str], repeats: int) -> list[dict[str, Any]]:
    """Places in turns, so that whatever drifts drifts for all."""
    watch = CpuWatch()
    placed = {place: Placed(model, place) for place in places}
    rows: list[dict[str, Any]] = []
    try:
        for one in placed.values():
            one.run([Job(tuple(range(100, 164)), 4)])
        for workload in workloads:
            runs: dict[str, list[Replay]] = {place: [] for place in places}
            for repetition in range(repeats):
                for place, one in placed.items():
                    runs[place].append(one.run(jobs_of(workload, repetition)))
            same = [[request.ids for request in runs[place][0].requests] for place in places]
            for place, found in zip(places, same, strict=True):
                summaries = [figures(run.summary) for run in runs[place]]
                middle = {name: statistics.median(one[name] for one in summaries) for name in summaries[0]}
                guess = predict(model, place, jobs_of(workload, 0))
                rows.append({
                    "workload": workload, "place": place, **middle,
                    "failed": sum(run.summary.failed for run in runs[place]),
                    "predicted": guess, "same_tokens": found == same[0],
                })  # fmt: skip
    finally:
        for one in placed.values():
            one.client.close()
    foreign = watch.foreign_cpu_share()
    for row in rows:
        guess = row["predicted"]
        shown = "  ".join(
            f"{name[:-2] if name.endswith('_s') else name} {row[name] * scale:.1f} ({guess[name] * scale:.1f})"
            for name, scale in SHOWN
        )
        print(f"{row['workload']:6} {row['place']:24} {shown}  same tokens: {row['same_tokens']}")
    return [{"foreign_cpu_share": foreign, **row} for row in rows]


# -- the link


def one_way(client: Any, tokens: int, salt: int) -> dict[str, float]:
    """One request of 2 tokens alone: seconds to the first, and from it to the second."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    prompt = tuple(np.random.default_rng(salt).integers(1000, 30_000, tokens).tolist())
    begun = time.perf_counter()
    client.submit_to(Request(f"one-{salt}-{begun}", prompt, 2, ignore_stop=True, arrival_s=begun), inbox.put)
    times: list[float] = []
    while len(times) < 2:
        event = inbox.get(timeout=60)
        if not isinstance(event, TokenEvent):
            raise event
        times += [event.at_s] * len(event.tokens)
    return {"first_s": times[0] - begun, "next_s": times[1] - times[0]}


def link(model: str, tokens: int, factors: list[float], repeats: int) -> dict[str, Any]:
    """At several rates: the way from the first token to the second; it should be bytes over rate, plus what it is over
    a free link. Break-even: where that equals computing the prompt on one such engine, measured on the same machine."""
    config = config_of(model, "chunked")
    config = EngineConfig(model, context=2048, kv_bytes=1 << 28, threads=1)
    described = describe(model)
    program = record(described, STORAGES.get(config.storage))
    per_token = sum(group.bytes_per_token for group in program.kv_groups)
    machine = load_or_measure(1)
    even = LoadOrCompute(StepCosts({"model": program}, lambda: machine), per_token, lambda tier: 1.0)
    predicted = even.link_bytes_per_s(tokens)
    parcel_bytes = -(-tokens // 16) * 16 * per_token
    with EngineClient(config) as client:
        one_way(client, tokens, 1)
        alone = [one_way(client, tokens, salt) for salt in range(2, 2 + repeats)]
    compute_s = statistics.median(one["first_s"] - one["next_s"] for one in alone)
    free = _ways(model, tokens, 0.0, repeats)
    rows = []
    for factor in factors:
        rate = max(predicted * factor, 1e4)
        way = _ways(model, tokens, rate, repeats)
        expected = parcel_bytes / rate + free
        rows.append({"rate": rate, "way_s": way, "expected_s": expected, "ratio": way / expected})
    fixed = statistics.median(row["way_s"] - parcel_bytes / row["rate"] for row in rows)
    step_s = statistics.median(one["next_s"] for one in alone)
    measured = _crossing([(row["rate"], row["way_s"] - step_s) for row in rows], compute_s)
    computed_rate = parcel_bytes / compute_s
    found = {
        "tokens": tokens, "bytes_per_token": per_token, "parcel_bytes": parcel_bytes,
        "estimated_compute_s": even.compute_s(tokens),
        "measured_compute_s": compute_s, "free_way_s": free, "fixed_s": fixed, "step_s": step_s,
        "break_even_bytes_per_s": {
            "predicted": predicted, "from measured compute": computed_rate, "measured on the link": measured,
        }, "rows": rows,
    }  # fmt: skip
    for row in rows:
        print(
            f"{row['rate'] / 1e6:8.2f} MB/s: {row['way_s'] * 1e3:7.1f} ms, expected {row['expected_s'] * 1e3:7.1f} ms, "
            f"ratio {row['ratio']:.3f}"
        )
    print(
        f"{tokens} tokens, {parcel_bytes / 1e6:.2f} MB; computing them: estimated "
        f"{even.compute_s(tokens) * 1e3:.0f} ms, measured {compute_s * 1e3:.0f} ms; break-even link: predicted "
        f"{predicted / 1e6:.1f} MB/s, with the measured time {computed_rate / 1e6:.1f} MB/s, found on the link "
        f"{measured / 1e6:.1f} MB/s"
    )
    return found


def _ways(model: str, tokens: int, rate: float, repeats: int) -> float:
    """Median seconds from the first token to the second over a link of this rate."""
    place = "disaggregated:link=tcp,threads=1+1" + (f",rate={rate:.0f}" if rate else "")
    with LLM(model, context=2048, kv_bytes=1 << 28, place=place) as llm:
        one_way(llm, tokens, 1)
        return statistics.median(one_way(llm, tokens, salt)["next_s"] for salt in range(2, 2 + repeats))


def _crossing(points: list[tuple[float, float]], level: float) -> float:
    """The rate at which the way takes `level` seconds, by interpolation of 1/rate; NaN outside."""
    inverse = sorted((1 / rate, way) for rate, way in points)
    for (a, low), (b, high) in itertools.pairwise(inverse):
        if low <= level <= high:
            return 1 / (a + (b - a) * (level - low) / (high - low))
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=("table", "link"))
    parser.add_argument("model")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--places", default=";".join(PLACES), help="separated by semicolons")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=448)
    parser.add_argument("--rates", default="0.5,0.7,1,1.4,2", help="multiples of the predicted break-even")
    asked = parser.parse_args()
    if asked.question == "table":
        found: Any = table(asked.model, asked.workloads.split(","), asked.places.split(";"), asked.repeats)
    else:
        found = link(asked.model, asked.tokens, [float(one) for one in asked.rates.split(",")], asked.repeats)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

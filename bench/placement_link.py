"""The link rate from which on handing kept state on pays (E9): predicted, and found on a throttled TCP link.

python bench/placement_link.py MODEL [--tokens 448] [--rates 0.5,0.7,1,1.4,2] [--kv bf16]   last line: one JSON document
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import queue
import statistics
import time
from typing import Any

import numpy as np

from ridgeline.cluster.stage import PARTS
from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.sizing import held_bytes
from ridgeline.llm import LLM
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.perf.calibrate import calibrated
from ridgeline.run.break_even import LoadOrCompute
from ridgeline.run.costs import StepCosts
from ridgeline.run.noise import CpuWatch
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request


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


def link(model: str, tokens: int, factors: list[float], repeats: int, kv: str) -> dict[str, Any]:
    """At several rates: the way from the first token to the second; it should be bytes over rate, less what travels
    while the prompt is still computed (all but the first of PARTS leave time for it), plus what it is over a free link.
    Break-even: where that, without the step itself, equals computing the prompt on one such engine."""
    options: dict[str, Any] = {"context": 2048, "kv_bytes": 1 << 27, "kv": kv}
    config = EngineConfig(model, threads=1, **options)
    program = record(describe(model), make_storage(config.storage))
    parcel_bytes = held_bytes(program.kv_groups, tokens)
    machine = calibrated(program, 1)
    even = LoadOrCompute(StepCosts({"model": program}, lambda: machine), parcel_bytes // tokens, lambda tier: 1.0)
    overlaps = 2 - 1 / PARTS  # times computing: once again, and what it hides
    with EngineClient(config) as client:
        first, again = one_way(client, tokens, 1), one_way(client, tokens, 2)
        centre = parcel_bytes / overlaps / min(first["first_s"], again["first_s"])
        rates = [max(centre * factor, 1e4) for factor in factors]
        watch = CpuWatch()
        alone, free_ways, *ways = _ways(client, model, tokens, [0.0, *rates], repeats, options)
    step_s = statistics.median(one["next_s"] for one in alone)
    compute_s = statistics.median(one["first_s"] for one in alone) - step_s
    free = statistics.median(one["next_s"] for one in free_ways)
    predicted = parcel_bytes / (overlaps * compute_s - free + step_s)
    estimated = parcel_bytes / (overlaps * even.compute_s(tokens))  # before anything ran: no free way known
    rows = []
    for rate, found in zip(rates, ways, strict=True):
        way = statistics.median(one["next_s"] for one in found)
        expected_s = max(parcel_bytes / rate - (overlaps - 1) * compute_s, 0.0) + free
        rows.append({"rate": rate, "way_s": way, "first_s": statistics.median(one["first_s"] for one in found),
                     "expected_s": expected_s, "ratio": way / expected_s})  # fmt: skip
    crossing = _crossing([(row["rate"], row["way_s"] - step_s) for row in rows], compute_s)
    ratios = []  # found to predicted, round by round: the machine's clock swings from one to the next
    for once, way, *over in zip(alone, free_ways, *ways, strict=True):
        level = once["first_s"] - step_s
        points = [(rate, one["next_s"] - step_s) for rate, one in zip(rates, over, strict=True)]
        ratios.append(_crossing(points, level) * (overlaps * level - way["next_s"] + step_s) / parcel_bytes)
    for row in rows:
        print(
            f"{kv} {row['rate'] / 1e6:8.2f} MB/s: first token {row['first_s'] * 1e3:6.0f} ms, from it to the second "
            f"{row['way_s'] * 1e3:7.1f} ms, expected {row['expected_s'] * 1e3:7.1f} ms, ratio {row['ratio']:.3f}"
        )
    print(
        f"{kv}: {tokens} tokens, {parcel_bytes / 1e6:.2f} MB; computing them: estimated "
        f"{even.compute_s(tokens) * 1e3:.0f} ms, measured {compute_s * 1e3:.0f} ms; free way {free * 1e3:.0f} ms, of "
        f"it the step {step_s * 1e3:.0f} ms; break-even: estimated {estimated / 1e6:.2f} MB/s, "
        f"by the measured time {predicted / 1e6:.2f} MB/s, found on the link {crossing / 1e6:.2f} MB/s "
        f"({crossing / predicted - 1:+.1%}; by round {', '.join(f'{ratio - 1:+.1%}' for ratio in ratios)})"
    )
    return {
        "kv": kv, "tokens": tokens, "parcel_bytes": parcel_bytes, "foreign_cpu_share": watch.foreign_cpu_share(),
        "estimated_compute_s": even.compute_s(tokens), "measured_compute_s": compute_s, "free_way_s": free,
        "step_s": step_s, "rows": rows, "rounds": [alone, free_ways, *ways], "ratios": ratios,
        "break_even_bytes_per_s": {"estimated": estimated, "from measured compute": predicted, "found": crossing},
    }  # fmt: skip


def _ways(
    alone: Any, model: str, tokens: int, rates: list[float], repeats: int, options: dict[str, Any]
) -> list[list[dict[str, float]]]:
    """One engine alone, then a pair over a link of each rate (0: unthrottled), by round. They take turns, so that
    whatever drifts drifts for all."""
    places = ["disaggregated:link=tcp,threads=1+1" + (f",rate={rate:.0f}" if rate else "") for rate in rates]
    with contextlib.ExitStack() as stack:
        engines = [alone, *(stack.enter_context(LLM(model, place=place, **options)) for place in places)]
        found: list[list[dict[str, float]]] = [[] for _ in engines]
        for salt in range(3, 4 + repeats):
            for times, llm in zip(found, engines, strict=True):
                times.append(one_way(llm, tokens, salt))
    return [times[1:] for times in found]


def _crossing(points: list[tuple[float, float]], level: float) -> float:
    """The rate at which the way takes `level` seconds, by interpolation of 1/rate; NaN outside."""
    inverse = sorted((1 / rate, way) for rate, way in points)
    for (a, low), (b, high) in itertools.pairwise(inverse):
        if low <= level <= high:
            return 1 / (a + (b - a) * (level - low) / (high - low))
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=448)
    parser.add_argument("--rates", default="0.5,0.7,1,1.4,2", help="multiples of the rate that computing comes to")
    parser.add_argument("--kv", default="bf16", help="storages, separated by commas")
    asked = parser.parse_args()
    factors = [float(one) for one in asked.rates.split(",")]
    found = [link(asked.model, asked.tokens, factors, asked.repeats, kv) for kv in asked.kv.split(",")]
    for one, other in itertools.combinations(found, 2):
        more = one["parcel_bytes"] - other["parcel_bytes"]
        slower = other["measured_compute_s"] + other["free_way_s"] - one["measured_compute_s"] - one["free_way_s"]
        rate = more / slower if slower * more > 0 else float("inf")
        print(
            f"{one['kv']} against {other['kv']}: as soon at {rate / 1e6:.1f} MB/s; over slower links {other['kv']} is"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()

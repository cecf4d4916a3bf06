"""What the always-on account costs (issue 5): at most 2 % of a step, as an upper confidence limit.

python bench/ledger_cost.py MODEL [--batches 1 16] [--pairs 60] [--steps 28]
Account and native line clocks on and off, run by run in turn, each run's state drawn first or second alternately.
Prints a table; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
import time
from typing import Any

from host_path import Watched, drive, is_steady, jobs_of, show

from ridgeline.engine.build import Parts, build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine, Unobserved
from ridgeline.perf.account import NOTED, Account
from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch

T95 = 1.70  # Student's t, one-sided 95 %, 29 degrees of freedom (1.699); more pairs make it smaller
LEAST_PAIRS = 30


def upper(values: list[float]) -> float:
    """Upper limit of the mean's one-sided 95 % confidence interval."""
    return statistics.fmean(values) + T95 * statistics.stdev(values) / math.sqrt(len(values))


class Switch:
    """The account and the clocks around every native line, on or off together."""

    def __init__(self, engine: Engine) -> None:
        self._watched: Any = engine.observer
        self._batch = engine.runner._batch.struct  # type: ignore[attr-defined]  # before the first step of a run
        self._clocks = self._batch.line_ns
        self.account: Account = self._watched.inner

    def turn(self, state: str) -> None:
        self._watched.inner = self.account if state == "on" else Unobserved()
        self._batch.line_ns = self._clocks if state == "on" else None


def one_run(engine: Engine, switch: Switch, batch: int, steps: int, name: str, repetition: int) -> dict[str, float]:
    """Medians of its steps, microseconds. Summing the notes up falls behind the last step and is spread over all: a
    real run does so every NOTED notes, in larger and so cheaper portions."""
    watched: Any = engine.observer
    spent: list[tuple[int, int]] = []

    def note(took: int) -> None:
        if is_steady(watched, batch):
            spent.append((took, took - watched.result.native_ns))

    drive(engine, jobs_of(batch, steps, engine.facts.vocabulary, repetition), name, note)
    summing_us = own_us = 0.0
    if name.startswith("on"):
        began = time.perf_counter_ns()
        count = switch.account.steps  # sums up what is noted
        summing_us = (time.perf_counter_ns() - began) / 1e3 / count
        own_us = switch.account.table().account_ns / 1e3 / count
        switch.account.reset()
    wall, host = (statistics.median(one[place] for one in spent) / 1e3 + summing_us for place in (0, 1))
    return {"wall": wall, "host": host, "summing": summing_us, "own": own_us + summing_us}


def cost(engine: Engine, batch: int, pairs: int, steps: int) -> dict[str, Any]:
    """ratio: of whole steps. added_share: host time only (native time taken off, with its noise) over the step."""
    switch = Switch(engine)
    runs: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    for pair in range(pairs):
        for state in ("on", "off") if pair % 2 else ("off", "on"):
            switch.turn(state)
            runs[state].append(one_run(engine, switch, batch, steps, f"{state}-{pair}", 500 + pair))
    switch.turn("on")
    both = list(zip(runs["on"], runs["off"], strict=True))
    ratios = [on["wall"] / off["wall"] - 1 for on, off in both]
    added = [(on["host"] - off["host"]) / off["wall"] for on, off in both]
    own = [on["own"] / off["wall"] for on, off in both]
    step_us = statistics.median(off["wall"] for off in runs["off"])
    return {
        "batch": batch, "pairs": pairs, "steps": steps, "step_us": step_us,
        "own line us": statistics.median(on["own"] for on in runs["on"]),
        "of it summing us": statistics.median(on["summing"] for on in runs["on"]),
        "own %": 100 * statistics.fmean(own), "own % upper": 100 * upper(own),
        "host %": 100 * statistics.fmean(added), "host % upper": 100 * upper(added),
        "wall %": 100 * statistics.fmean(ratios), "wall % median": 100 * statistics.median(ratios),
        "wall % upper": 100 * upper(ratios),
    }  # fmt: skip


def observe(parts: Parts) -> Watched:
    return Watched(Account(parts.program.reaches, tuple(line.part for line in parts.program)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=28, help="of each run of a pair")
    asked = parser.parse_args()
    if asked.pairs < LEAST_PAIRS:
        parser.error(f"--pairs is below {LEAST_PAIRS}; the confidence limit needs at least so many")
    if (max(asked.batches) + 1) * asked.steps >= NOTED:
        parser.error(f"more than {NOTED} notes a run: notes would be summed up inside of steps; lower --steps")
    cpu = CpuWatch()
    engine = build(EngineConfig(asked.model, context=1024, max_sequences=max(asked.batches)), observer_factory=observe)
    drive(engine, jobs_of(1, 32, engine.facts.vocabulary, 0), "warm", lambda took: None)
    rows = [cost(engine, batch, asked.pairs, asked.steps) for batch in asked.batches]
    engine.close()
    show("the account, on against off (us a step; upper: one-sided 95 %)", rows)
    share = cpu.foreign_cpu_share()
    print(f"\nforeign CPU share {share}")
    print(json.dumps({
        "bench": "ledger_cost", "date": str(datetime.date.today()), "argv": sys.argv[1:], "machine": fingerprint().cpu,
        "cost": rows, "foreign_cpu_share": share,
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

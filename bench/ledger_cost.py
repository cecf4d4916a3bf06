"""What the always-on account costs (issue 5): at most 2 % of a step, as an upper confidence limit.

python bench/ledger_cost.py MODEL [--batches 1 16] [--pairs 60] [--steps 28]
Account and native line clocks on and off step by step, so that neighbours of a virtual machine disturb both alike; a
pair is the two halves of one run. Prints a table; the last line is one JSON document.
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
ORDER = (True, False, False, True)


def upper(values: list[float]) -> float:
    """Upper limit of the mean's one-sided 95 % confidence interval."""
    return statistics.fmean(values) + T95 * statistics.stdev(values) / math.sqrt(len(values))


class Switch:
    """The account and the clocks around every native line, on or off together."""

    def __init__(self, engine: Engine) -> None:
        self._watched: Any = engine.observer
        self._batch = engine.runner._batch.struct  # type: ignore[attr-defined]  # no other way to stop its clocks
        self._clocks = self._batch.line_ns
        self.account: Account = self._watched.inner
        self.is_on = True

    def turn(self, is_on: bool) -> None:
        self.is_on = is_on
        self._watched.inner = self.account if is_on else Unobserved()
        self._batch.line_ns = self._clocks if is_on else None


def one_run(engine: Engine, switch: Switch, batch: int, steps: int, name: str, repetition: int) -> dict[str, float]:
    """Medians of its steps with the account and of those without, in turn (on off off on), microseconds.

    Summing the notes up falls behind the last step and is spread over the noted ones: a real run does so every NOTED
    notes, in larger and so cheaper portions.
    """
    watched: Any = engine.observer
    spent: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    met = 0

    def note(took: int) -> None:
        nonlocal met
        if is_steady(watched, batch):
            spent[switch.is_on].append((took, took - watched.result.native_ns))
            met += 1
        switch.turn(ORDER[(met + repetition) % len(ORDER)])

    drive(engine, jobs_of(batch, steps, engine.facts.vocabulary, repetition), name, note)
    began = time.perf_counter_ns()
    count = switch.account.steps  # sums up what is noted
    summing_us = (time.perf_counter_ns() - began) / 1e3 / count
    own_us = switch.account.table().account_ns / 1e3 / count
    switch.account.reset()
    on, off = (
        [statistics.median(one[place] for one in spent[state]) / 1e3 for place in (0, 1)] for state in (True, False)
    )
    return {
        "off": off[0], "wall": on[0] + summing_us - off[0], "host": on[1] + summing_us - off[1],
        "summing": summing_us, "own": own_us + summing_us,
    }  # fmt: skip


def cost(engine: Engine, batch: int, pairs: int, steps: int) -> dict[str, Any]:
    """wall: of whole steps. host: of host time only (native time taken off, with its noise). own: what it says itself.
    All in percent of the step without it."""
    switch = Switch(engine)
    runs = [one_run(engine, switch, batch, steps, f"run-{batch}-{pair}", 500 + pair) for pair in range(pairs)]
    switch.turn(True)
    found: dict[str, Any] = {
        "batch": batch, "pairs": pairs, "steps": steps, "step_us": statistics.median(one["off"] for one in runs),
        "own line us": statistics.median(one["own"] for one in runs),
        "of it summing us": statistics.median(one["summing"] for one in runs),
    }  # fmt: skip
    for name in ("own", "host", "wall"):
        shares = [100 * one[name] / one["off"] for one in runs]
        found |= {f"{name} %": statistics.fmean(shares), f"{name} % upper": upper(shares)}
    return found


def observe(parts: Parts) -> Watched:
    return Watched(Account(parts.program.reaches, tuple(line.part for line in parts.program)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=28, help="of a run")
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

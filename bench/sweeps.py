"""How a step grows: batch 1 to 256, context 128 to 32k, threads and instruction sets, beside the prediction.

python bench/sweeps.py smollm2-135m --what batch threads isa; python bench/sweeps.py qwen2.5-coder-0.5b --what context
Steps go straight to the engine's runner and pools (KV is read as it lies there, pages in random order), so that no
prompt need be computed. Interleaved over points; medians. A point is a cliff when time over prediction leaves its
neighbours' by more than half. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import closing
from typing import Any

import msgspec
import numpy as np

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.kernels import native
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.ops.batch import BatchShape
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import fingerprint, load_or_measure, usable_cores
from ridgeline.run.noise import CpuWatch
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32000)
ROW = "{:>24} {:>10} {:>10} {:>8} {:>12}"
CLIFF = 1.5


class Point(msgspec.Struct, frozen=True):
    """One step to time: `batch` sequences that have `context` tokens and add one each."""

    batch: int
    context: int
    threads: int
    isa: str

    @property
    def name(self) -> str:
        return f"{self.batch} x {self.context}, {self.threads} t, {self.isa}"


def points(what: list[str], longest: int) -> list[Point]:
    """In the order they are shown. longest: context of the model."""
    cores, best = usable_cores(), native.isa()
    found = []
    if "batch" in what:
        found += [Point(batch, 128, cores, best) for batch in BATCHES]
    if "context" in what:
        found += [Point(1, context, cores, best) for context in CONTEXTS if context <= longest - 1]
    if "threads" in what:
        found += [Point(batch, 128, threads, best) for threads in range(1, cores + 1) for batch in (1, 32)]
    if "isa" in what:
        found += [Point(batch, 128, cores, isa) for isa in native.instruction_sets() for batch in (1, 32)]
    return found


class Bench:
    """One engine at one number of threads; steps straight to its runner."""

    def __init__(self, model: str, threads: int, most: Point) -> None:
        blocks = (most.context + 1) // BLOCK_TOKENS + 1
        config = EngineConfig(
            model, threads=threads, max_sequences=256, step_tokens=256, step_logit_rows=256, prefix=False
        )
        per_block = build_block_bytes(config)
        self.engine = build(msgspec.structs.replace(config, kv_bytes=(max(4096, blocks) + 64) * per_block))
        runner: Any = self.engine.runner
        self.runner = runner
        program = runner.bound.program
        self.reaches = program.reaches
        self.estimator = Estimator(program, load_or_measure(threads))
        self._order = np.random.default_rng(0).permutation(min(pool.blocks for pool in runner.pools)).astype(np.int32)

    def plan(self, point: Point) -> StepPlan:
        each = point.context // BLOCK_TOKENS + 1
        entries = []
        for index in range(point.batch):
            table = np.take(self._order, np.arange(index * each, (index + 1) * each), mode="wrap")
            row = LogitRow(0, point.context + 1, Sampling())
            entries.append(Entry(index, point.context, (5,), (table,) * len(self.reaches), (row,)))
        return StepPlan(tuple(entries))

    def seconds(self, point: Point, repeats: int) -> float:
        """Median of the native call and what submit and collect add."""
        native.set_isa(point.isa)
        plan = self.plan(point)
        taken = []
        for _ in range(repeats + 1):
            result = self.runner.collect(self.runner.submit(plan))
            taken.append(result.ended_s - result.started_s)
        return statistics.median(taken[1:])

    def predicted(self, point: Point) -> float:
        shape = BatchShape.of([(point.context, 1)] * point.batch, point.batch, self.reaches)
        return float(self.estimator.step_seconds(shape))


def build_block_bytes(config: EngineConfig) -> int:
    with closing(build(msgspec.structs.replace(config, kv_bytes=1 << 24))) as engine:
        runner: Any = engine.runner
        return sum(pool.nbytes // pool.blocks for pool in runner.pools)


def cliffs(ratios: list[float]) -> list[int]:
    """Places whose time over prediction is CLIFF times off both neighbours' in the same direction."""
    found = []
    for place in range(1, len(ratios) - 1):
        before, here, after = ratios[place - 1 : place + 2]
        if here > CLIFF * max(before, after) or here * CLIFF < min(before, after):
            found.append(place)
    return found


def measure(model: str, wanted: list[Point], rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Engines one after another by threads; points interleaved within."""
    rows: list[dict[str, Any]] = []
    for threads in sorted({point.threads for point in wanted}):
        mine = [point for point in wanted if point.threads == threads]
        bench = Bench(model, threads, max(mine, key=lambda point: point.context * 1.0))
        with closing(bench.engine):
            taken: dict[str, list[float]] = {point.name: [] for point in mine}
            for _ in range(rounds):
                for point in mine:
                    taken[point.name].append(bench.seconds(point, repeats))
            for point in mine:
                seconds, predicted = statistics.median(taken[point.name]), bench.predicted(point)
                rows.append(msgspec.structs.asdict(point) | {"seconds": seconds, "predicted_s": predicted})
    order = {point: place for place, point in enumerate(wanted)}
    return sorted(rows, key=lambda row: order[Point(row["batch"], row["context"], row["threads"], row["isa"])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--what", nargs="+", default=["batch", "context", "threads", "isa"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with closing(build(EngineConfig(asked.model, kv_bytes=1 << 24))) as engine:
        longest = engine.facts.context_model
    watch, isa = CpuWatch(), native.isa()
    rows: list[dict[str, Any]] = []
    for what in asked.what:
        part = measure(asked.model, points([what], longest), asked.rounds, asked.repeats)
        print(ROW.format(what, "ms", "predicted", "ratio", "tokens/s"))
        ratios = [row["seconds"] / row["predicted_s"] for row in part]
        odd = cliffs(ratios) if what in ("batch", "context") else []
        for place, row in enumerate(part):
            name = Point(row["batch"], row["context"], row["threads"], row["isa"]).name
            row |= {"what": what, "is_cliff": place in odd}
            print(ROW.format(
                name, f"{row['seconds'] * 1e3:.2f}", f"{row['predicted_s'] * 1e3:.2f}", f"{ratios[place]:.2f}",
                f"{row['batch'] / row['seconds']:.0f}",
            ) + ("  cliff" if place in odd else ""))  # fmt: skip
        rows += part
    native.set_isa(isa)
    share = watch.foreign_cpu_share()
    print(f"others used {share:.1%} of the machine" if share is not None else "use by others: unknown")
    document = {"bench": "sweeps", "model": asked.model, "rows": rows, "foreign_cpu_share": share}
    print(json.dumps(document | {"cpu": fingerprint().cpu, "cores": fingerprint().cores}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

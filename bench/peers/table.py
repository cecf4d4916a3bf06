"""The peer table: Ridgeline beside every peer, same token ids, interleaved job by job in one run, one engine at a time.

python bench/peers/table.py [--peers llama.cpp,openvino,...] [--workloads W1,W3] [--repeats 3] [--out peers.json]
Makes what is missing (environments, converted weights), then gives every engine each workload in turn: greedy, end of
sequence ignored; loading and warm-ups are not timed. Bandwidth and peaks are measured before each workload, and what
others took of the processor is printed: quote ratios of one run, never its figures alone.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from engines import OURS, PEERS, Engine, command, contestants
from environment import CACHE, RECIPES, environment
from models import Models
from rows import Run, plain, rows_of, same_tokens, table_lines, value_of
from turn import Turn
from workers import Worker, WorkerError
from workloads import workload

from ridgeline.report.plots import Panel, bars
from ridgeline.run.machine import available_bytes
from ridgeline.run.noise import CpuWatch, foreign_cpu_share

SETTLE_S, WATCH_S = 0.7, 0.5
IDLE_LIMIT = 0.10  # of a core: who takes more while it waits is ended after each job, and started anew
SPARE_BYTES = 2 << 30  # kept free when another engine is started beside the waiting ones
WORKLOADS = ("W1", "W2-512", "W2-2048", "W2-4096", "D32", "W3", "W4")
OUR_WEIGHTS = ["native", "native/auto", "int8/auto", "bf16"]  # auto: 8-bit activations where the quality allows it
Json = dict[str, Any]


class Field:
    """The engines, and their workers: kept waiting as long as memory lasts and they really wait."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.failed = options, dict[str, str]()
        self.engines = contestants(options.peers, options.weights)
        self.commands: dict[str, list[str]] = {}
        self.starts: dict[str, list[Json]] = {}
        self.restless: dict[str, float] = {}  # engines that do not wait quietly, and what they took of a core
        self._workers: dict[str, Worker] = {}

    def prepare(self, turn: Turn) -> None:
        """Environments and weights; what cannot be had is written down with its reason."""
        options = self.options
        models = Models(options.model.resolve(), options.cache, self.environment_of)
        for engine in self.engines:
            turn.wait()
            try:
                folder = None if engine.peer == OURS else self.environment_of(engine.peer)
                self.commands[engine.name] = command(engine, models.get(engine.form), folder, options.threads)
            except (SystemExit, subprocess.CalledProcessError, OSError) as error:
                self._fail(engine, f"not to be had here: {error}")

    def environment_of(self, peer: str) -> Path:
        made: Path | None = self.options.made.get(peer)
        return made or environment(peer, self.options.cache)

    def run(self, engine: Engine, name: str, repetition: int, machine: Json) -> Run | None:
        """One job, watched; None when the engine fails, which it then does for good."""
        requests = workload(name, repetition, self.options.requests)
        try:
            worker = self._worker(engine)
            time.sleep(SETTLE_S)
            waiting = [other for key, other in self._workers.items() if key != engine.name]
            before, watch, begin = sum(other.cpu_s() for other in waiting), CpuWatch(), time.perf_counter()
            result = worker.run(requests, machine)
            spent, foreign = time.perf_counter() - begin, watch.foreign_cpu_share()
            idle = (sum(other.cpu_s() for other in waiting) - before) / spent / self.options.threads
            if engine.name in self.restless:
                self._stop(engine.name)
        except WorkerError as error:
            self._stop(engine.name)
            self._fail(engine, str(error))
            return None
        return Run(engine.name, name, repetition, result, foreign, idle, _read_rate(machine))

    def close(self) -> None:
        for name in list(self._workers):
            self._stop(name)

    def _worker(self, engine: Engine) -> Worker:
        if engine.name not in self._workers:
            while self._workers and available_bytes() < engine.memory_bytes + SPARE_BYTES:
                self._stop(min(self._workers, key=lambda name: self._workers[name].used))
            log = self.options.cache.expanduser() / "log" / f"{re.sub('[ /:]', '-', engine.name)}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            worker = Worker(self.commands[engine.name], log, self.options.threads)
            self._workers[engine.name] = worker
            self.starts.setdefault(engine.name, []).append(worker.ready | {"memory": worker.memory()})
            time.sleep(SETTLE_S)
            before = worker.cpu_s()
            time.sleep(WATCH_S)
            if (share := (worker.cpu_s() - before) / WATCH_S) > IDLE_LIMIT:
                self.restless[engine.name] = share
        return self._workers[engine.name]

    def _stop(self, name: str) -> None:
        if name in self._workers:
            self._workers.pop(name).stop()

    def _fail(self, engine: Engine, reason: str) -> None:
        self.failed[engine.name] = reason
        self.commands.pop(engine.name, None)
        print(f"{engine.name}: {reason}", file=sys.stderr, flush=True)


def measured_machine(threads: int) -> Json:
    """Bandwidth and peaks now, by the native probe (a child, so that its memory goes away)."""
    code = (
        "import sys, msgspec; from ridgeline.run.machine import measure; "
        "print(msgspec.json.encode(measure(int(sys.argv[1]))).decode())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(threads)], capture_output=True, text=True, check=True)
    machine: Json = json.loads(done.stdout)
    return machine


def _read_rate(machine: Json) -> float:
    """Bytes/s of all threads from the largest set: memory."""
    reads = [read for read in machine["reads"] if read["threads"] == machine["threads"]]
    return float(max(reads, key=lambda read: read["set_bytes"])["bytes_per_s"])


def race(field: Field, turn: Turn) -> tuple[list[Run], list[Json]]:
    """Every engine on every workload, `repeats` times; who is slow on one does it once."""
    options, runs, machines = field.options, list[Run](), list[Json]()
    slow: set[tuple[str, str]] = set()
    try:
        for repetition in range(options.repeats):
            for name in options.workloads:
                turn.take()
                machines.append(measured_machine(options.threads))
                for engine in field.engines:
                    if engine.name not in field.commands or not engine.does(name) or (engine.name, name) in slow:
                        continue
                    turn.take()
                    run = field.run(engine, name, repetition, machines[-1])
                    if run is None:
                        continue
                    runs.append(run)
                    if run.result["wall_s"] > options.slow_s:
                        slow.add((engine.name, name))
                    report(run)
                    save(options, document(field, runs, machines))
    finally:
        field.close()
        turn.give()
    return runs, machines


def report(run: Run) -> None:
    foreign = "?" if run.foreign_share is None else f"{run.foreign_share:.1%}"
    print(
        f"{run.repetition} {run.workload:8} {run.engine:22} {value_of(run.workload, run.result):8.1f}   "
        f"others {foreign}, waiting engines {run.idle_share:.1%}",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def document(field: Field, runs: list[Run], machines: list[Json]) -> Json:
    options = field.options
    rows = {name: rows_of(name, field.engines, runs) for name in options.workloads}
    builds = {run.engine: run.result["facts"] for run in runs}
    return {
        "schema": "ridgeline.bench.peers/1", "model": options.model.name, "threads": options.threads,
        "machines": machines, "builds": builds, "starts": field.starts, "failed": field.failed,
        "restless": field.restless, "rows": [row for found in rows.values() for row in plain(found)],
        "same_tokens": same_tokens(runs, field.engines), "runs": [_short(run) for run in runs],
    }  # fmt: skip


def _short(run: Run) -> Json:
    """A run without its token ids, which are compared already."""
    result = {key: value for key, value in run.result.items() if key not in ("requests", "facts")}
    times = [{"ttft_s": one["ttft_s"], "e2e_s": one["e2e_s"]} for one in run.result["requests"]]
    return vars(run) | {"result": result | {"requests": times}}


def save(options: argparse.Namespace, found: Json) -> None:
    """Written after every job, so that an interrupted run leaves what it had."""
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def print_all(field: Field, runs: list[Run], found: Json) -> None:
    for name in field.options.workloads:
        if rows := rows_of(name, field.engines, runs):
            print("\n" + "\n".join(table_lines(name, rows, field.options.requests if name in ("W3", "W4") else None)))
    reads = [_read_rate(machine) for machine in found["machines"]]
    peaks = {kind: max(m["flops_per_s"].get(kind, 0.0) for m in found["machines"]) for kind in ("f32", "int8", "bf16")}
    shown = ", ".join(f"{kind} {rate / 1e9:.0f} G/s" for kind, rate in peaks.items() if rate)
    print(f"\nread bandwidth in this run: {statistics.median(reads) / 1e9:.1f} GB/s (median), peaks {shown}.")
    print(
        "'ours/it': ours at the same number of bits. 'best/it': our best. (n): runs. '!': others used more than 10 %."
    )
    for line in same_tokens(runs, field.engines):
        print(f"{line['engine']}: first {line['equal']} of {line['of']} tokens of W1 as {line['reference']}")
    for name, starts in field.starts.items():
        middle = statistics.median(start["first_token_s"] for start in starts)
        print(f"{name}: {middle:.2f} s from the start of its process to the first token")
    for name, facts in found["builds"].items():
        print(f"{name}: {facts['build']}; weights {facts['weight_bytes'] / 1e6:.1f} MB")
    for name, share in field.restless.items():
        print(f"{name}: took {share:.0%} of a core while it waited, so it was started anew for each job")
    for engine in field.engines:
        if engine.only is not None:
            print(f"{engine.name}: only asked for {', '.join(engine.only)}")
    for name, reason in field.failed.items():
        print(f"{name}: MISSING. {reason.strip().splitlines()[-1]}")


def plot(field: Field, runs: list[Run], found: Json) -> str:
    """A chart of at most three workloads: bars of medians."""
    shown = [name for name in ("W1", "W2-2048", "W3", "D32", "W4", "W2-512") if name in field.options.workloads][:3]
    rows = {name: {row.engine: row.value for row in rows_of(name, field.engines, runs)} for name in shown}
    engines = [engine for engine in field.engines if any(engine.name in found for found in rows.values())]
    panels = [
        Panel(
            name,
            "ms, less is better" if name.startswith("W2-") else "tokens/s",
            [rows[name].get(e.name) for e in engines],
        )
        for name in shown
    ]
    labels = [(engine.name, f"{engine.bits} bits") for engine in engines]
    machine = found["machines"][-1]["fingerprint"]
    return bars(
        f"{field.options.model.stem}: Ridgeline beside its peers", "medians of one interleaved run", labels, panels,
        f"{machine['cpu']}, {field.options.threads} threads",
    )  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(engine.peer for engine in PEERS))
    words = {"type": lambda text: [word for word in text.split(",") if word]}
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file: what ridgeline pull prints")
    parser.add_argument("--peers", **words, default=names, help=f"of {','.join(names)}")
    parser.add_argument("--workloads", **words, default=list(WORKLOADS))
    parser.add_argument(
        "--weights",
        **words,
        default=OUR_WEIGHTS,
        help="of ours: WEIGHTS, WEIGHTS/ACTIVATIONS or WEIGHTS/ACTIVATIONS/KV",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, help="W3 and W4 with fewer requests, for a trial")
    parser.add_argument("--slow-s", type=float, default=90.0, help="a job that takes longer is not repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--plot", type=Path, help="SVG")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where environments and converted weights are kept")
    parser.add_argument(
        "--made", action="append", default=[], metavar="PEER=DIR", help=f"made already: {','.join(RECIPES)}"
    )
    parser.add_argument("--turn", type=Path, metavar="FILE", help="exists while something is timed here (see turn.py)")
    options = parser.parse_args()
    options.made = {peer: Path(folder) for peer, _, folder in (pair.partition("=") for pair in options.made)}
    return options


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the turn is given back
    field, turn = Field(options), Turn(options.turn, lambda: foreign_cpu_share(1.0))
    field.prepare(turn)
    runs, machines = race(field, turn)
    found = document(field, runs, machines)
    print_all(field, runs, found)
    save(options, found)
    if options.plot is not None and runs:
        options.plot.write_text(plot(field, runs, found), encoding="utf-8")


if __name__ == "__main__":
    main()

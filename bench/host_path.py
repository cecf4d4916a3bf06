"""The host path: what this process does between two native calls (issue 4), by part and by batch size.

python bench/host_path.py MODEL.gguf [--batches 1 8 32 64] [--steps 128] [--pairs 30] [--overlap] [--through]
Host time of a step = its wall time, events encoded, minus the nanoseconds inside native calls. Only steps in which
every entry is one token count. Prints tables; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from ridgeline.async_llm import AsyncLLM
from ridgeline.engine.build import Parts, build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine, Unobserved
from ridgeline.llm import LLM
from ridgeline.perf.account import Account, StepTable
from ridgeline.perf.workload import Job, named_workload
from ridgeline.run.machine import load_or_measure
from ridgeline.run.noise import CpuWatch
from ridgeline.state.messages import Tokens
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence

TARGET_US = {1: 130.0, 64: 1000.0}
PROMPT = 32  # tokens: the host path of a step hardly knows how many came before


@dataclass
class Spread:
    """Microseconds."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def document(self) -> dict[str, float]:
        ordered = sorted(self.values)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return {"median_us": self.median, "p99_us": p99, "steps": len(ordered)}


class Watched:
    """An observer that keeps what the step in hand was, and passes everything on."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.plan, self.result = inner, None, None

    def on_step(self, plan: StepPlan, result: StepResult) -> None:
        self.plan, self.result = plan, result
        self.inner.on_step(plan, result)

    def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None:
        self.inner.on_finish(sequence, reason, at_s)


class Parted:
    """Own nanoseconds of each part of a step: what a part calls is not its own."""

    def __init__(self) -> None:
        self.own_ns: dict[str, int] = {}
        self._inside: list[int] = []

    def watch(self, owner: Any, method: str, part: str) -> None:
        setattr(owner, method, partial(self.run, getattr(owner, method), part))

    def run(self, function: Callable[..., Any], part: str, *given: Any) -> Any:
        self._inside.append(0)
        began = time.perf_counter_ns()
        try:
            return function(*given)
        finally:
            took = time.perf_counter_ns() - began
            self.own_ns[part] = self.own_ns.get(part, 0) + took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took


def watch_parts(engine: Engine, parted: Parted) -> None:
    runner: Any = engine.runner
    scheduler = engine.scheduler
    for owner, method, part in (
        (scheduler, "plan", "plan"), (scheduler.memory, "reserve", "reserve blocks"),
        (runner, "submit", "submit"), (runner._batch, "fill", "fill the batch"),
        (runner._batch, "results", "read results"), (engine.observer, "on_step", "account"),
        (scheduler, "commit", "commit, events"), (scheduler.memory, "advance", "publish blocks"),
    ):  # fmt: skip
        parted.watch(owner, method, part)


def requests(jobs: list[Job], name: str) -> Iterator[Request]:
    for index, job in enumerate(jobs):
        yield Request(f"{name}-{index}", job.prompt, job.output_tokens, ignore_stop=True)


def jobs_of(count: int, steps: int, vocabulary: int, repetition: int) -> list[Job]:
    """Equal streams; ids differ from stream to stream and from run to run."""
    made = (named_workload("W1", vocabulary, 1000 * repetition + index) or [] for index in range(count))
    return [Job(jobs[0].prompt[:PROMPT], steps) for jobs in made]


def drive(engine: Engine, jobs: list[Job], name: str, each: Callable[[int], None]) -> None:
    """Run to the end as engine/process.py does; each(wall nanoseconds) after every step."""
    encode = msgspec.msgpack.Encoder().encode
    for request in requests(jobs, name):
        engine.add(request)
    while engine.has_work:
        began = time.perf_counter_ns()
        events = engine.step()
        if events:
            encode(Tokens(tuple(events)))
        each(time.perf_counter_ns() - began)


def is_steady(watched: Watched, batch: int) -> bool:
    plan = watched.plan
    return plan is not None and len(plan.entries) == batch and plan.tokens == batch


def measure(engine: Engine, batch: int, steps: int, repetition: int) -> dict[str, Any]:
    """Host time of steps of `batch` streams, whole and then by part (watching the parts costs a little itself)."""
    watched = engine.observer
    vocabulary = engine.facts.vocabulary
    whole, wall = Spread(), Spread()

    def note(took_ns: int) -> None:
        if is_steady(watched, batch):
            whole.values.append((took_ns - watched.result.native_ns) / 1e3)
            wall.values.append(took_ns / 1e3)

    drive(engine, jobs_of(batch, steps, vocabulary, repetition), f"whole-{batch}", note)
    return {"batch": batch, "host": whole.document(), "step": wall.document()}


def measure_parts(engine: Engine, parted: Parted, batch: int, steps: int, repetition: int) -> dict[str, float]:
    watched = engine.observer
    parts: dict[str, Spread] = {}

    def note(took_ns: int) -> None:
        own, parted.own_ns = parted.own_ns, {}
        if is_steady(watched, batch):
            own["submit"] -= watched.result.native_ns
            own["loop, encode events"] = took_ns - watched.result.native_ns - sum(own.values())
            for part, nanoseconds in own.items():
                parts.setdefault(part, Spread()).values.append(nanoseconds / 1e3)

    drive(engine, jobs_of(batch, steps, engine.facts.vocabulary, repetition), f"parts-{batch}", note)
    return {part: spread.median for part, spread in parts.items()}


def observer_cost(engine: Engine, pairs: int, batch: int, steps: int) -> dict[str, Any]:
    """The same streams with the account on and off, in turn; reading the account's table belongs to its cost."""
    watched = engine.observer
    account, off = watched.inner, Unobserved()
    host: dict[str, list[float]] = {"on": [], "off": []}
    wall: dict[str, list[float]] = {"on": [], "off": []}
    for pair in range(pairs):
        for state in ("on", "off") if pair % 2 else ("off", "on"):
            watched.inner = account if state == "on" else off
            spent: list[tuple[int, int]] = []
            jobs = jobs_of(batch, steps, engine.facts.vocabulary, 500 + pair)
            drive(engine, jobs, state, lambda took, s=spent: s.append((took, took - watched.result.native_ns)))
            began = time.perf_counter_ns()
            if state == "on":
                account.table()
                account.reset()
            read_ns = time.perf_counter_ns() - began
            wall[state].append((sum(took for took, _ in spent) + read_ns) / len(spent) / 1e3)
            host[state].append((sum(own for _, own in spent) + read_ns) / len(spent) / 1e3)
    watched.inner = account
    step_us = statistics.median(wall["off"])
    added = sorted(on - off for on, off in zip(host["on"], host["off"], strict=True))
    ratios = sorted(on / off for on, off in zip(wall["on"], wall["off"], strict=True))
    low, high = int(0.1 * pairs), max(int(0.9 * pairs) - 1, 0)
    return {
        "batch": batch, "pairs": pairs, "steps": steps, "step_us": step_us,
        "added_host_us": statistics.median(added), "added_host_us_p10_p90": [added[low], added[high]],
        "added_share": statistics.median(added) / step_us,
        "wall_ratio": statistics.median(ratios), "wall_ratio_p10_p90": [ratios[low], ratios[high]],
    }  # fmt: skip


def overlap(engine: Engine, steps: int, work_us: float) -> dict[str, float]:
    """What planning the next step beside a native one would cost: in every other step another thread of this process
    works in Python for `work_us` of CPU time while the native call runs, as planning at depth 1 would have to."""
    wake, stop = threading.Event(), threading.Event()

    def work() -> None:
        while wake.wait() and not stop.is_set():
            wake.clear()
            until = time.thread_time_ns() + work_us * 1e3
            while time.thread_time_ns() < until:
                pass

    worker = threading.Thread(target=work)
    worker.start()
    watched, submit = engine.observer, engine.runner.submit
    native: dict[bool, list[float]] = {True: [], False: []}
    state = {"is_beside": False}

    def submitted(plan: StepPlan) -> object:
        if state["is_beside"]:
            wake.set()
        return submit(plan)

    def note(took_ns: int) -> None:
        if is_steady(watched, 1):
            native[state["is_beside"]].append(took_ns / 1e3)
        state["is_beside"] = not state["is_beside"]

    engine.runner.submit = submitted  # type: ignore[method-assign]
    drive(engine, jobs_of(1, steps, engine.facts.vocabulary, 4000), "overlap", note)
    engine.runner.submit = submit  # type: ignore[method-assign]
    stop.set()
    wake.set()
    worker.join()
    alone, beside = (statistics.median(native[is_beside]) for is_beside in (False, True))
    return {"work_us": work_us, "step_alone_us": alone, "step_beside_us": beside, "added_us": beside - alone}


@contextmanager
def spoken(model: str, options: dict[str, Any]) -> Iterator[tuple[LLM, AsyncLLM]]:
    asynchronous = AsyncLLM(model, **options)
    try:
        yield asynchronous.llm, asynchronous
    finally:
        asynchronous.llm.close()


def through(llm: LLM, asynchronous: AsyncLLM, batch: int, steps: int, repetition: int) -> list[dict[str, Any]]:
    """The engine's own times when somebody reads its events in another process: raw, as text, as text in asyncio."""

    async def read(prompts: list[tuple[int, ...]]) -> None:
        async def one(prompt: tuple[int, ...]) -> None:
            async for _ in asynchronous.stream(prompt, max_tokens=steps, ignore_stop=True):
                pass

        await asyncio.gather(*(one(prompt) for prompt in prompts))

    def raw(prompts: list[tuple[int, ...]]) -> None:
        jobs = [Job(prompt, steps) for prompt in prompts]
        for stream in [llm.submit(request) for request in requests(jobs, "raw")]:
            for _ in stream:
                pass

    readers: dict[str, Callable[[list[tuple[int, ...]]], object]] = {
        "ids only": raw,
        "LLM.generate": lambda prompts: llm.generate(prompts, max_tokens=steps, ignore_stop=True),
        "AsyncLLM.stream": lambda prompts: asyncio.run(read(prompts)),
    }
    rows = []
    for place, (name, reader) in enumerate(readers.items()):
        jobs = jobs_of(batch, steps, llm.facts.vocabulary, 7000 + 10 * repetition + place)
        llm._client.account(reset=True)
        cpu_s = time.process_time()
        reader([job.prompt for job in jobs])
        cpu_s = time.process_time() - cpu_s
        table = llm._client.account(StepTable)
        rows.append({"reader": name, "batch": batch, **_steady_times(table, batch), "reader_cpu_us": 0.0})
        rows[-1]["reader_cpu_us"] = cpu_s / max(len(table.step_times()), 1) * 1e6
    return rows


def _steady_times(table: StepTable, batch: int) -> dict[str, float]:
    """Medians over neighbouring steps that only decode; inside: the mean over all steps, native time taken off."""
    times, shapes = table.step_times(), table.shape_rows()
    tokens = {int(step): int(count) for step, count in zip(shapes[:, 0], shapes[:, 2], strict=True)}
    steady = [i for i in range(1, len(times)) if tokens[i] == batch and tokens[i - 1] == batch]
    between = [(times[i, 0] - times[i - 1, 1]) * 1e6 for i in steady]
    inside_us = (float((times[:, 1] - times[:, 0]).sum()) - table.native_ns * 1e-9) / len(times) * 1e6
    return {
        "between_us": statistics.median(between), "inside_us": inside_us,
        "step_us": statistics.median((times[i, 1] - times[i - 1, 1]) * 1e6 for i in steady),
        "host_us": statistics.median(between) + inside_us,
    }  # fmt: skip


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("  " + " | ".join(names))
    for row in rows:
        cells = (row.get(name, "") for name in names)
        print("  " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=0, help="also the account's cost, in so many interleaved pairs")
    parser.add_argument("--overlap", action="store_true", help="also what planning beside a native call would cost")
    parser.add_argument("--through", action="store_true", help="also through LLM and AsyncLLM (the engine's process)")
    asked = parser.parse_args()
    cpu = CpuWatch()
    config = EngineConfig(asked.model, context=1024, max_sequences=max(asked.batches))

    def observe(parts: Parts) -> Watched:
        return Watched(Account(parts.program.reaches))

    document: dict[str, Any] = {"bench": "host_path", "date": str(datetime.date.today()), "argv": sys.argv[1:]}
    engine = build(config, observer_factory=observe)
    machine = load_or_measure(engine.facts.threads)
    document["machine"] = machine.fingerprint.cpu
    drive(engine, jobs_of(1, 16, engine.facts.vocabulary, 0), "warm", lambda took: None)
    whole = [measure(engine, batch, asked.steps, run) for run in range(1, asked.runs + 1) for batch in asked.batches]
    flat = [
        {
            "batch": row["batch"],
            **row["host"],
            "target_us": TARGET_US.get(row["batch"], ""),
            "step_us": row["step"]["median_us"],
        }
        for row in whole
    ]
    show("host time of a step (us)", flat)
    document["host"] = whole
    if asked.pairs:
        batches = sorted({1, max(asked.batches)})
        document["account"] = [observer_cost(engine, asked.pairs, batch, 32) for batch in batches]
        show("the account, on against off", document["account"])
    if asked.overlap:
        document["overlap"] = [overlap(engine, 2 * asked.steps, work_us) for work_us in (50.0, 100.0, 200.0)]
        show("a step beside so much Python (depth 1)", document["overlap"])
    parted = Parted()
    watch_parts(engine, parted)
    parts = [
        {"batch": batch, **measure_parts(engine, parted, batch, asked.steps, 90 + batch)} for batch in asked.batches
    ]
    show("own time of each part, medians (us; watching adds a little)", parts)
    document["parts"] = parts
    engine.close()
    if asked.through:
        options = {"context": 1024, "max_sequences": max(asked.batches)}
        with spoken(asked.model, options) as (llm, asynchronous):
            rows = [row for batch in asked.batches for row in through(llm, asynchronous, batch, asked.steps, batch)]
        show("through the engine's process (us a step)", rows)
        document["through"] = rows
    document["foreign_cpu_share"] = cpu.foreign_cpu_share()
    print(f"\nforeign CPU share {document['foreign_cpu_share']}")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether the ledger's operator times are true (issue 5): against a stopwatch outside, and against outside profilers.

python bench/operator_times.py MODEL [--sums] [--perf] [--torch]     without a choice: all three
--sums: operators + gaps + host beside a stopwatch around every Engine.step; --perf: shares of operator kinds beside
`perf record` (samples of the calling thread by the library's symbols; one thread, then all); --torch: shares of
operator groups beside torch.profiler on the reference bodies. Prints tables; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import bisect
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from host_path import Watched, drive, jobs_of, show

from ridgeline.engine.build import Parts, build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.perf.account import Account
from ridgeline.perf.ledger import make_ledger
from ridgeline.perf.workload import Job
from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch
from ridgeline.state.request import Request

TOP = 5
SAMPLES_PER_S = 9973
MEETING = "meeting"
NEAR_NS = 5_000  # shorter than all but the shortest operators
# Operator kind of a kernel's symbol (template arguments cut off); the first that matches.
KINDS = (
    ("attend", r"^(score|weigh|soften|attend|merge|find_pages|widen|exp_one|emit|load_rows)"),
    ("norm", r"^(norm|head_norm)"),
    ("activation", r"^(activation|silu|gelu)"),
    ("rope", r"^rope"),
    ("embed", r"^(embed|gather)"),
    ("add", r"^add$"),
    ("sample", r"^(sample|draw)"),
    ("linear", r"^(block|linear|run_split|multiply|take)"),
    (MEETING, r"^(barrier|meet|live|run$|walk|nanoseconds|clock_gettime|sched_getcpu|move_away)"),
)
OPERATORS = {kind for kind, _ in KINDS} - {MEETING}
PARTS = {  # of operator groups; every other group is linear
    "attend": "attend", "attend_norm": "norm", "mlp_norm": "norm", "final_norm": "norm", "activation": "activation",
    "rope": "rope", "embed": "embed", "gather": "embed", "sample": "sample", "attend_add": "add", "mlp_add": "add",
}  # fmt: skip


def account_of(engine: Engine) -> Account:
    watched: Any = engine.observer
    found: Account = watched.inner
    return found


def job(prompt: int, output: int, first: int = 100) -> Job:
    return Job(tuple(first + (13 * place) % 20_000 for place in range(prompt)), output)


# -- operators + gaps + host = step


def sums(engine: Engine, batch: int, prompt: int, output: int, name: str) -> dict[str, Any]:
    """The ledger's step time beside a stopwatch around every Engine.step, and the worst request's residual."""
    account = account_of(engine)
    account.reset()
    for index in range(batch):
        ids = tuple(100 + (7 * index + place) % 20_000 for place in range(prompt))
        engine.add(Request(f"{name}-{index}", ids, output, ignore_stop=True, arrival_s=time.perf_counter()))
    outside_ns = 0
    while engine.has_work:
        began = time.perf_counter_ns()
        engine.step()
        outside_ns += time.perf_counter_ns() - began
    ledger = make_ledger(account.table())
    whole_ns = ledger.operators_ns + ledger.gaps_ns + ledger.host_ns
    residual = max(one.residual_ns / one.e2e_ns for one in ledger.requests)
    return {
        "run": name, "steps": ledger.steps, "stopwatch ms": outside_ns / 1e6, "ledger ms": whole_ns / 1e6,
        "ledger %": 100 * whole_ns / outside_ns, "operators %": 100 * ledger.operators_ns / outside_ns,
        "gaps %": 100 * ledger.gaps_ns / outside_ns, "host %": 100 * ledger.host_ns / outside_ns,
        "preemptions": sum(one.preemptions for one in ledger.requests), "worst residual %": 100 * residual,
    }  # fmt: skip


def all_sums(model: str) -> list[dict[str, Any]]:
    """Plain, guessing ahead, and in a pool too small for everybody (with and without a host tier)."""
    rows = []
    small = {"kv_bytes": 14 << 20, "context": 256, "max_sequences": 8}
    for options, cases in (
        ({"max_sequences": 8}, ((1, 32, 96, "decode"), (1, 800, 2, "prefill"), (8, 120, 48, "batch 8"))),
        ({"max_sequences": 8, "spec": "ngram:k=4,adapt=off"}, ((1, 64, 96, "guessing"), (4, 64, 64, "guessing, 4"))),
        (small, ((8, 90, 64, "pool too small"),)),
        (small | {"host_kv_bytes": 64 << 20}, ((8, 90, 64, "pool too small, swap"),)),
    ):
        engine = build(EngineConfig(model, **({"context": 1024} | options)), observer_factory=observe)
        drive(engine, jobs_of(1, 32, engine.facts.vocabulary, 0), "warm", lambda took: None)
        rows += [sums(engine, *case) for case in cases]
        engine.close()
    return rows


# -- outside profilers


class Samples:
    """Of one thread: times in nanoseconds, ascending, and the operator kind of each."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.kinds: list[str] = []

    def at(self, moment: int) -> str:
        """The kind of a sample within NEAR_NS, "" where there is none."""
        place = bisect.bisect_left(self.times, moment - NEAR_NS)
        return self.kinds[place] if place < len(self.times) and self.times[place] <= moment + NEAR_NS else ""


@contextmanager
def sampled_by_perf() -> Iterator[dict[int, Samples]]:
    """{thread: its samples}, there when the block has ended. Every thread has a rate of its own, so that samples of two
    threads lie now close together, now apart."""
    samples: dict[int, Samples] = {}
    threads = sorted(int(name) for name in os.listdir("/proc/self/task"))
    with tempfile.TemporaryDirectory() as folder:
        recorders = [
            subprocess.Popen(
                ["perf", "record", "-q", "-o", f"{folder}/{thread}", "-e", "cpu-clock", "-F",
                 str(SAMPLES_PER_S - 601 * place), "-t", str(thread)], stderr=subprocess.DEVNULL,
            )
            for place, thread in enumerate(threads)
        ]  # fmt: skip
        time.sleep(0.5)  # until they are attached
        yield samples
        for recorder in recorders:
            recorder.send_signal(signal.SIGINT)
        for recorder, thread in zip(recorders, threads, strict=True):
            recorder.wait()
            samples[thread] = read_samples(f"{folder}/{thread}")


def read_samples(path: str) -> Samples:
    script = ["perf", "script", "-i", path, "--ns", "-F", "time,ip,sym,dso"]
    found, samples = subprocess.run(script, capture_output=True, text=True, check=True).stdout, Samples()
    for line in found.splitlines():
        moment, _, rest = line.split(None, 2)
        samples.times.append(int(moment.rstrip(":").replace(".", "")))
        samples.kinds.append(kind_of(rest))
    return samples


def kind_of(text: str) -> str:
    """Of "symbol (library)"."""
    if "libridgeline" not in text:
        return "host" if "python" in text else "system"
    symbol = re.sub(r"\(anonymous namespace\)::|<.*", "", text).split("(")[0].strip().rsplit("::", 1)[-1]
    return next((kind for kind, pattern in KINDS if re.search(pattern, symbol)), "elsewhere")


def elapsed(threads: dict[int, Samples]) -> tuple[Counter[str], int, int]:
    """Samples of the calling thread by operator kind, as its clock runs: while it waits for the other threads, the kind
    is what they were still doing. That is known of the waiting samples that have one of theirs within NEAR_NS, and
    taken to hold for all. Also how many waited, and of how many that is known."""
    first = threads[os.getpid()]
    others = [samples for thread, samples in threads.items() if thread != os.getpid()]
    kinds = Counter(first.kinds)
    seen: Counter[str] = Counter()
    for moment, kind in zip(first.times, first.kinds, strict=True):
        if kind == MEETING:
            seen.update(other for other in (one.at(moment) for one in others) if other)
    waited, known = kinds[MEETING], sum(seen.values())
    for kind, count in seen.items():  # where they waited too, nobody worked: it stays what it was
        kinds[kind] += round(count / known * waited)
        kinds[MEETING] -= round(count / known * waited)
    return kinds, waited, known


def by_perf(engine: Engine, jobs: list[list[Job]], name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Shares of operator kinds: the ledger's, and those of a sampling profiler that knows nothing of it. jobs: those
    of a list together, the lists one after the other."""
    account = account_of(engine)
    with sampled_by_perf() as threads:
        account.reset()
        for index, together in enumerate(jobs):
            drive(engine, together, f"{name} {index}", lambda took: None)
    told: Counter[str] = Counter()
    for part, spent in operator_ns(account).items():
        told[PARTS.get(part, "linear")] += spent
    samples, waited, known = elapsed(threads)
    apart = {kind: count for kind, count in samples.items() if kind not in OPERATORS}
    inside = Counter({kind: count for kind, count in samples.items() if kind in OPERATORS})
    both = {"run": name, "threads": len(threads), "in operators": sum(inside.values())}
    both |= {"waiting": waited, "known for": known}
    return compared(name, told, inside), both | dict(sorted(apart.items()))


def all_perf(model: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    cases: tuple[tuple[str, list[list[Job]]], ...] = (
        ("decode", [[job(32, 320)]]), ("decode after 700 tokens", [[job(700, 240)]]),
        ("decode, 8 streams", [[job(32, 96, 100 + 999 * index) for index in range(8)]]),
        ("prefill, 900 tokens", [[job(900, 1, 100 + 777 * index)] for index in range(4)]),
    )  # fmt: skip
    rows, samples = [], []
    for threads in (1, None):
        config = EngineConfig(model, context=1024, max_sequences=8, threads=threads)
        engine = build(config, observer_factory=observe)
        drive(engine, jobs_of(1, 32, engine.facts.vocabulary, 0), "warm", lambda took: None)
        for name, jobs in cases:
            found = by_perf(engine, jobs, f"{name}, {engine.facts.threads} thread{'s'[threads == 1 :]}")
            rows += found[0]
            samples.append(found[1])
        engine.close()
    return rows, samples


def operator_ns(account: Account) -> dict[str, int]:
    timeline = account.table().timeline
    if timeline is None:
        raise SystemExit("the account kept no timeline")
    columns = timeline.step_rows().sum(0).tolist()
    return dict(zip(timeline.parts, columns[-len(timeline.parts) :], strict=True))


def compared(name: str, told: Counter[str], outside: Counter[str]) -> list[dict[str, Any]]:
    """The five largest of ours, in percent of all operators; and its place among theirs."""
    own, other = sum(told.values()), sum(outside.values())
    places = [kind for kind, _ in outside.most_common()]
    rows = []
    for place, (kind, spent) in enumerate(told.most_common(TOP), 1):
        ours, theirs = 100 * spent / own, 100 * outside[kind] / other
        there = places.index(kind) + 1 if kind in places else "-"
        rows.append({
            "run": name, "place": place, "operator": kind, "ledger %": ours, "profiler %": theirs,
            "points": ours - theirs, "its place": there,
        })  # fmt: skip
    return rows


def by_torch(model: str) -> list[dict[str, Any]]:
    """The reference bodies, line by line, beside torch.profiler's clock. By operator group."""
    import torch

    from ridgeline.run import runner

    plain = runner.run_line

    def recorded(step: Any, line: Any, values: Any) -> Any:
        with torch.profiler.record_function(f"part:{line.part}"):
            return plain(step, line, values)

    engine = build(EngineConfig(model, body="torch", context=256, max_sequences=1), observer_factory=observe)
    account = account_of(engine)
    drive(engine, [job(32, 2)], "torch-warm", lambda took: None)
    runner.run_line = recorded
    account.reset()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            drive(engine, [job(64, 8)], "torch", lambda took: None)
    finally:
        runner.run_line = plain
    outside: Counter[str] = Counter()
    for average in profiler.key_averages():
        if average.key.startswith("part:"):
            outside[average.key[5:]] += int(average.cpu_time_total)
    told = Counter(operator_ns(account))
    engine.close()
    return compared("torch body", told, outside)


def observe(parts: Parts) -> Watched:
    return Watched(Account(parts.program.reaches, tuple(line.part for line in parts.program)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--sums", action="store_true", help="operators + gaps + host against an outside stopwatch")
    parser.add_argument("--perf", action="store_true", help="operator kinds against perf record")
    parser.add_argument("--torch", action="store_true", help="operator groups against the torch profiler")
    asked = parser.parse_args()
    is_all = not (asked.sums or asked.perf or asked.torch)
    document: dict[str, Any] = {"bench": "operator_times", "date": str(datetime.date.today()), "argv": sys.argv[1:]}
    document["machine"] = fingerprint().cpu
    cpu = CpuWatch()
    if asked.sums or is_all:
        document["sums"] = all_sums(asked.model)
        show("operators + gaps + host, beside a stopwatch around every step", document["sums"])
    if asked.perf or is_all:
        document["perf"], document["samples"] = all_perf(asked.model)
        show("the five largest operator kinds, % of operators, beside perf record", document["perf"])
        show("samples of the calling thread: in operators, and elsewhere", document["samples"])
    if asked.torch or is_all:
        document["torch"] = by_torch(asked.model)
        show("the five largest operator groups of the reference bodies, beside torch.profiler", document["torch"])
    document["foreign_cpu_share"] = cpu.foreign_cpu_share()
    print(f"\nforeign CPU share {document['foreign_cpu_share']}")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The first speed table: Ridgeline, llama.cpp and transformers on W1 and W3, interleaved in one run.

python bench/first_speed_table.py MODEL.gguf [--repetitions 3] [--threads 2] [--engines ridgeline,llama.cpp]
Every repetition gives every engine the same fresh token ids, one engine after the other, greedy, end of sequence
ignored; loading and a warm-up are not timed. Read bandwidth is measured before each repetition, and the share of
the processor that others used is printed: quote ratios of one run, never its figures alone.
The last line of stdout is one JSON document. Run it with the Python of an environment that has ridgeline.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads import write

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from environment import CACHE, environment

HERE = Path(__file__).parent
LIMIT_S = 1800.0
FOREIGN_LIMIT = 0.10  # a run with more of the processor in other hands is marked
Json = dict[str, Any]
Command = Callable[[Path], list[str]]


@dataclass
class Run:
    """One engine on one workload, once."""

    repetition: int
    result: Json
    foreign_share: float


@dataclass
class Engine:
    name: str
    command: Command
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def median(self, workload: str, value: Callable[[Json], float | None]) -> float | None:
        found = [number for run in self.runs.get(workload, []) if (number := value(run.result)) is not None]
        return statistics.median(found) if found else None


def engines(options: argparse.Namespace) -> Iterator[Engine]:
    """Ours in its precisions, then the peers. Environments are made now, before anything is timed."""
    threads = ["--threads", str(options.threads)]
    wanted = options.engines.split(",")
    if "ridgeline" in wanted:
        program = str(Path(sys.executable).parent / "ridgeline")
        for weights in options.weights.split(","):
            start = [program, "bench", str(options.model), "--weights", weights, *threads, "--json", "--workload"]
            yield Engine(f"ridgeline {weights}", lambda path, start=start: [*start, str(path)])  # type: ignore[misc]
    if "llama.cpp" in wanted:
        folder = options.llamacpp or environment("llamacpp", options.cache)
        for kind in options.kinds.split(","):
            start = [sys.executable, str(HERE / "peers" / "llamacpp.py"), "--model", str(options.model), *threads]
            start += ["--environment", str(folder), "--cache", str(options.cache), "--kind", kind, "--workload"]
            yield Engine(f"llama.cpp {kind}", lambda path, start=start: [*start, str(path)])  # type: ignore[misc]
    if "transformers" in wanted:
        folder = options.transformers or environment("transformers", options.cache)
        script = str(HERE / "peers" / "transformers_generate.py")
        start = [str(folder / "bin" / "python"), script, "--model", str(options.model), *threads]
        start += ["--cache", str(options.cache), "--workload"]
        yield Engine("transformers bf16", lambda path, start=start: [*start, str(path)])  # type: ignore[misc]


def busy_s() -> float:
    """Processor seconds that this machine has spent, time stolen by its host included."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def own_s() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def measured(command: list[str]) -> tuple[Json, float]:
    """A command's JSON document, and the share of the processor that others used meanwhile."""
    begin, busy, own = time.perf_counter(), busy_s(), own_s()
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    available = (time.perf_counter() - begin) * (os.cpu_count() or 1)
    foreign = (busy_s() - busy) - (own_s() - own)
    return json.loads(done.stdout.splitlines()[-1]), max(0.0, foreign / available)


def read_bandwidth(threads: int) -> float:
    """Bytes/s from memory now, by the native probe (a child, so that its memory goes away)."""
    code = (
        "import sys; from ridgeline.run.machine import measure; "
        "print(measure(int(sys.argv[1]), quick=True).read_bytes_per_s)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(threads)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def tokens_per_s(result: Json) -> float | None:
    """Output tokens per second after the first, of a single request."""
    tpot_s = result["requests"][0]["tpot_s"]
    return 1 / tpot_s if tpot_s else None


def summary_rate(result: Json) -> float:
    rate = result["summary"].get("output_tokens_per_s")
    if rate is None:
        tokens = sum(len(request["ids"]) for request in result["requests"])
        rate = tokens / max(request["e2e_s"] for request in result["requests"])
    return float(rate)


def ttft_s(result: Json) -> float | None:
    found = [request["ttft_s"] for request in result["requests"] if request["ttft_s"] is not None]
    return statistics.median(found) if found else None


def weight_bytes(result: Json) -> float | None:
    ours, theirs = result.get("facts", {}), result.get("bench", {})
    return result.get("weight_bytes") or ours.get("resident_weight_bytes") or theirs.get("weight_bytes")


def build_of(result: Json) -> str:
    """How an engine was built, or which of its kernels ran."""
    facts = result.get("facts")
    return f"{facts['body']} kernels for {facts['isa']}" if facts else str(result.get("build", ""))


def rows_of(workload: str, engine: Engine, bandwidth: float) -> Iterator[Json]:
    """The engine's row, and a second one where its tool without a server was run too."""
    rate = tokens_per_s if workload == "W1" else summary_rate
    runs = engine.runs.get(workload, [])
    weights = engine.median(workload, weight_bytes)

    def share(tokens: float | None) -> float | None:
        return tokens * weights / bandwidth if workload == "W1" and tokens and weights else None

    common = {"workload": workload, "runs": len(runs), "foreign_share": max(run.foreign_share for run in runs)}
    tokens = engine.median(workload, rate)
    yield common | {
        "engine": engine.name, "ttft_s": engine.median(workload, ttft_s), "tokens_per_s": tokens,
        "all_tokens_per_s": [rate(run.result) for run in runs], "bandwidth_share": share(tokens),
    }  # fmt: skip
    if all("bench" in run.result for run in runs):
        tokens = engine.median(workload, lambda result: result["bench"]["decode_tokens_per_s"])
        yield common | {
            "engine": f"{engine.name} (llama-bench)",
            "ttft_s": engine.median(workload, lambda result: result["bench"]["ttft_s"]),
            "tokens_per_s": tokens,
            "all_tokens_per_s": [run.result["bench"]["decode_tokens_per_s"] for run in runs],
            "bandwidth_share": share(tokens),
        }


def print_table(rows: list[Json], bandwidth: float) -> None:
    for workload in dict.fromkeys(row["workload"] for row in rows):
        ours = next(
            (row for row in rows if row["workload"] == workload and row["engine"].startswith("ridgeline")), None
        )
        print(f"\n{workload}: output tokens/s {'after the first token' if workload == 'W1' else 'of all requests'}")
        print(f"{'engine':34} {'tok/s':>8} {'min-max':>15} {'ours/it':>8} {'TTFT ms':>8} {'of read':>8} {'foreign':>8}")
        for row in (row for row in rows if row["workload"] == workload):
            rates = row["all_tokens_per_s"]
            ratio = f"{ours['tokens_per_s'] / row['tokens_per_s']:.2f}" if ours else "-"
            first = f"{row['ttft_s'] * 1e3:.0f}" if row["ttft_s"] is not None else "-"
            share = f"{row['bandwidth_share']:.0%}" if row["bandwidth_share"] else "-"
            mark = "!" if row["foreign_share"] > FOREIGN_LIMIT else ""
            spread = f"{min(rates):.0f}-{max(rates):.0f}"
            print(
                f"{row['engine']:34} {row['tokens_per_s']:8.1f} {spread:>15} {ratio:>8} {first:>8} {share:>8} "
                f"{row['foreign_share']:8.0%}{mark}"
            )
    print(f"\nread bandwidth in this run: {bandwidth / 1e9:.1f} GB/s (median). '!': others used more than 10 %.")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file: every engine gets this one")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workloads", default="W1,W3")
    parser.add_argument("--requests", type=int, help="W3 with fewer requests, for a trial")
    parser.add_argument("--engines", default="ridgeline,llama.cpp,transformers")
    parser.add_argument("--weights", default="native,q8_0,bf16", help="precisions of ridgeline")
    parser.add_argument("--kinds", default="file,Q4_0,Q8_0,BF16", help="weight kinds of llama.cpp")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where environments and converted models are kept")
    parser.add_argument("--llamacpp", type=Path, help="a made environment of llama.cpp")
    parser.add_argument("--transformers", type=Path, help="a made environment of transformers")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    contestants = list(engines(options))
    bandwidths: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trial = write(Path(folder) / "trial.jsonl", "W1", 1000)
        for engine in contestants:  # converts models and fills file caches: not timed
            measured(engine.command(trial))
        for repetition in range(options.repetitions):
            bandwidths.append(read_bandwidth(options.threads))
            for name in options.workloads.split(","):
                path = write(Path(folder) / f"{name}.jsonl", name, repetition, options.requests)
                for engine in contestants:
                    run = Run(repetition, *measured(engine.command(path)))
                    engine.runs.setdefault(name, []).append(run)
                    rate = summary_rate(run.result)
                    print(f"{repetition} {name} {engine.name}: {rate:.1f} tokens/s", file=sys.stderr, flush=True)
    bandwidth = statistics.median(bandwidths)
    rows = [
        row for name in options.workloads.split(",") for one in contestants for row in rows_of(name, one, bandwidth)
    ]
    print_table(rows, bandwidth)
    builds = {engine.name: build_of(next(iter(engine.runs.values()))[0].result) for engine in contestants}
    print("\n".join(f"{name}: {build}" for name, build in builds.items() if build))
    document = {
        "schema": "ridgeline.bench.first_speed_table/1", "model": options.model.name, "threads": options.threads,
        "repetitions": options.repetitions, "read_bytes_per_s": bandwidths, "rows": rows, "builds": builds,
        "runs": {e.name: {w: [vars(run) for run in runs] for w, runs in e.runs.items()} for e in contestants},
    }  # fmt: skip
    print(json.dumps(document))


if __name__ == "__main__":
    main()

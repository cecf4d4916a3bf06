"""Plants bottlenecks of known cause and asks for verdicts: does it name what was planted, and nothing on tuned runs?

    PYTHONPATH=src python bench/plants.py --out plants.jsonl [--kinds host,queue] [--set written|held_out]
    PYTHONPATH=src python bench/plants.py --judge plants.jsonl        the rules alone, on what was recorded (1 s)

One line a run in --out (its Evidence); a table of confusion, then one line of JSON. Levels are in plant_kinds.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from plant_kinds import Level, kinds

from ridgeline.arguments import Prompt
from ridgeline.kit.errors import RidgelineError
from ridgeline.llm import LLM
from ridgeline.perf.evidence import Evidence
from ridgeline.perf.observe import Seen
from ridgeline.perf.replay import replay
from ridgeline.perf.verdict import judge
from ridgeline.perf.workload import Job
from ridgeline.run.machine import Machine, Pace, fingerprint, load_or_measure, mean_pace, recheck
from ridgeline.run.noise import CpuWatch

HERE = Path(__file__).parent
SPLIT = json.loads((HERE / "plants_split.json").read_text())
SETS = ("written", "held_out")
# A run counts when the machine itself was calm before and after it; else it is done again, whatever its verdict was.
CALM, CALM_READ, CALM_TRIES, TRIES = 0.72, 0.6, 4, 3
DISTURBED = 0.1  # share of the processors: a run in which others had more is not judged, and is done again


class Run(msgspec.Struct):
    """One planted run: what was planted, and what was seen."""

    kind: str
    level: int
    seed: int
    set: str
    evidence: Evidence
    before: Pace | None = None
    after: Pace | None = None
    redone: int = 0  # runs before this one that the machine disturbed: see is_calm


class SlowText(LLM):
    """Turning text into tokens takes `text_s` longer."""

    text_s = 0.0

    def encode(self, prompt: Prompt, *, special: bool = False) -> tuple[int, ...]:
        time.sleep(self.text_s)
        return super().encode(prompt, special=special)


@contextmanager
def burning(hogs: int) -> Iterator[None]:
    """Processes of somebody else: their parent ends at once, so they are no family of ours. In our session,
    or the kernel's grouping by session would give them less of the cores than a neighbour gets."""
    code = "import os, sys\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\nwhile True: pass"
    pids: list[int] = []
    for _ in range(hogs):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as one:
            pids.append(int(one.stdout.readline()))  # type: ignore[union-attr]
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def scaled(machine: Machine, factor: float) -> Machine:
    """Ceilings as a catalogue might have them, `factor` higher than they are."""
    reads = tuple(msgspec.structs.replace(read, bytes_per_s=factor * read.bytes_per_s) for read in machine.reads)
    flops = {kind: factor * rate for kind, rate in machine.flops_per_s.items()}
    return msgspec.structs.replace(machine, reads=reads, flops_per_s=flops)


def start(level: Level) -> LLM:
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "ridgeline.worker")
    if level.worker is not None:
        command = (sys.executable, str(HERE / "plant_worker.py"), "--plant", json.dumps(level.worker))
    llm = SlowText(level.model, command=(*level.prefix, *command), **level.options)
    return llm


def runs_of(kind: str, number: int, level: Level, seeds: list[int]) -> Iterator[Run]:
    """One engine, one run a seed."""
    llm = start(level)
    try:
        machine = scaled(load_or_measure(llm.facts.threads if level.options.get("threads", 2) <= 2 else 2), level.scale)
        for seed in seeds:
            for redone in range(TRIES):
                before = calm_pace(machine, level.scale)
                evidence = observed(llm, level, machine, f"{kind} {number} {seed} {redone}", before)
                after = recheck(machine)
                pace = mean_pace(before, after)
                run = Run(kind, number, seed, set_of(kind, number), replace(evidence, pace=pace), before, after, redone)
                if is_calm(before, level.scale) and is_calm(after, level.scale) and not is_disturbed(run):
                    break
            yield run
    finally:
        llm.close()


def observed(llm: LLM, level: Level, machine: Machine, name: str, before: Pace) -> Evidence:
    """Ask as the level says, with what is planted in its way. Another draw whenever it is done again: prompts that
    were computed once would be found in the prefix cache."""
    draw = random.Random(name)
    llm.text_s = 0.0  # type: ignore[attr-defined]
    replay(llm, [Job(tuple(draw.randrange(100, 400) for _ in range(16)), 4)])
    llm.text_s = level.text_s  # type: ignore[attr-defined]
    with burning(level.hogs):
        llm.account(reset=True, machine=machine)
        watch = CpuWatch()
        observed_s = level.ask(llm, draw)
        foreign = watch.foreign_cpu_share()
    return llm.evidence(Seen(f"planted {name}", observed_s, None, before, foreign), machine=machine)


def is_calm(pace: Pace, scale: float) -> bool:
    """The machine itself is near its known ceilings. `scale`: what was planted on them; it is no excuse."""
    return scale * pace.arithmetic >= CALM and scale * pace.read >= CALM_READ


def is_disturbed(run: Run) -> bool:
    """Others used the processors although nothing of the kind was planted (reading pages from a disk is the system's
    work, and counts as others')."""
    is_planted = kinds()[run.kind][run.level].hogs > 0 or run.kind == "memory_system"
    return not is_planted and (run.evidence.foreign_share or 0.0) > DISTURBED


def calm_pace(machine: Machine, scale: float) -> Pace:
    """Wait for a calm moment, CALM_TRIES times at most: this virtual machine's neighbours come and go."""
    for _ in range(CALM_TRIES):
        pace = recheck(machine)
        if is_calm(pace, scale):
            break
        time.sleep(0.5)
    return pace


def campaign(
    names: list[str], which: str | None, limit: int | None, deadline_s: float, done: set[tuple[str, int, int]]
) -> Iterator[Run]:
    """Levels of all kinds in turn, so that whatever drifts, drifts for all. done: (kind, level, seed) to leave out."""
    table, until = kinds(), time.perf_counter() + deadline_s
    for number in range(max(len(levels) for levels in table.values())):
        for kind in names:
            if number >= len(table[kind]) or (which and number not in SPLIT[which][kind]):
                continue
            if time.perf_counter() > until:
                return
            seeds = SPLIT["healthy_seeds" if kind == "healthy" else "seeds"][:limit]
            seeds = [seed for seed in seeds if (kind, number, seed) not in done]
            if not seeds:
                continue
            try:
                yield from runs_of(kind, number, table[kind][number], seeds)
            except RidgelineError as error:
                print(f"! {kind} {number}: {str(error).splitlines()[-1]}", file=sys.stderr, flush=True)


def table_of(runs: list[Run]) -> dict[str, Any]:
    """Planted against named, apart for the two sets; prints as it goes."""
    found: dict[str, Any] = {}
    for which in SETS:
        mine = [run for run in runs if run.set == which]
        named = [(run.kind, judge(run.evidence).cause) for run in mine]
        planted = [pair for pair in named if pair[0] != "healthy"]
        tuned = [pair for pair in named if pair[0] == "healthy"]
        right = sum(kind == cause for kind, cause in planted)
        alarms = sum(cause != "healthy" for _, cause in tuned)
        found[which] = {
            "planted": len(planted), "named first": right, "share": right / len(planted) if planted else None,
            "healthy": len(tuned), "alarms": alarms,
            "confusion": {f"{kind} -> {cause}": n for (kind, cause), n in sorted(Counter(named).items())},
        }  # fmt: skip
        print(
            f"{which}: {right} of {len(planted)} planted causes named first; {alarms} alarms in {len(tuned)} tuned runs"
        )
        for kind in dict.fromkeys(kind for kind, _ in named):
            causes = Counter(cause for other, cause in named if other == kind)
            print(f"  {kind:<18}" + "  ".join(f"{cause} {n}" for cause, n in causes.most_common()))
    return found


def set_of(kind: str, level: int) -> str:
    return "written" if level in SPLIT["written"][kind] else "held_out"


def recorded(path: Path) -> list[Run]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    runs = [msgspec.json.decode(line, type=Run) for line in lines]
    for run in runs:  # as the split says today
        run.set = set_of(run.kind, run.level)
    calm = [run for run in runs if not is_disturbed(run)]
    if len(calm) < len(runs):
        print(f"{len(runs) - len(calm)} runs that others disturbed are left out", file=sys.stderr)
    return calm


def compact(runs: list[Run], found: dict[str, Any]) -> str:
    """One line a run: what was planted and named, and the few numbers that say how calm it was."""
    lines = []
    for run in sorted(runs, key=lambda run: (run.kind, run.level, run.seed)):
        verdict, pace = judge(run.evidence), run.evidence.pace
        row = {
            "kind": run.kind, "level": run.level, "seed": run.seed, "set": run.set, "cause": verdict.cause,
            "share": round(verdict.share, 3), "nearness": round(verdict.measured.get("nearness", 0.0), 2),
            "next": [one.cause for one in verdict.next[:2]], "observed_s": round(run.evidence.observed_s, 2),
            "read_now": round(pace.read, 2) if pace else None,
            "arithmetic_now": round(pace.arithmetic, 2) if pace else None,
            "foreign": round(run.evidence.foreign_share or 0.0, 2), "redone": run.redone,
        }  # fmt: skip
        lines.append(json.dumps(row))
    head = {"machine": msgspec.to_builtins(fingerprint()), "sets": found}
    return json.dumps(head)[:-1] + ', "runs": [\n' + ",\n".join(lines) + "\n]}\n"


def tell(run: Run) -> None:
    verdict = judge(run.evidence)
    mark = " " if verdict.cause == run.kind else "*"
    shares = {name: round(value, 2) for name, value in verdict.measured.items() if value >= 0.1 and "share" in name}
    near = round(verdict.measured.get("nearness", 0.0), 2)
    print(
        f"{mark} {run.kind} {run.level}/{run.seed} -> {verdict.cause} near {near} {shares}", file=sys.stderr, flush=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append one line a run; what it holds already is not run again")
    parser.add_argument("--judge", type=Path, help="judge recorded runs; plant nothing")
    parser.add_argument("--kinds", help="some only, with commas")
    parser.add_argument("--set", choices=SETS)
    parser.add_argument("--seeds", type=int, help="first so many seeds only")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no engine after so long")
    parser.add_argument("--results", type=Path, help="with --judge: a compact file of every run and its verdict")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    if arguments.judge:
        runs = recorded(arguments.judge)
        chosen = (arguments.kinds or "").split(",")
        runs = [run for run in runs if not arguments.kinds or run.kind in chosen]
        runs = [run for run in runs if not arguments.set or run.set == arguments.set]
        if arguments.verbose:
            for run in runs:
                tell(run)
    else:
        names = arguments.kinds.split(",") if arguments.kinds else list(kinds())
        runs = recorded(arguments.out) if arguments.out else []
        done = {(run.kind, run.level, run.seed) for run in runs}
        for run in campaign(names, arguments.set, arguments.seeds, arguments.seconds, done):
            runs.append(run)
            if run.set == "held_out":  # its verdict is not looked at while rules are written
                print(f"  {run.kind} {run.level}/{run.seed} recorded", file=sys.stderr, flush=True)
            else:
                tell(run)
            if arguments.out:
                with arguments.out.open("ab") as file:
                    file.write(msgspec.json.encode(run) + b"\n")
    chosen_sets = SETS if arguments.judge and not arguments.set else (arguments.set or "written",)
    found = table_of([run for run in runs if run.set in chosen_sets])
    if arguments.results:
        arguments.results.write_text(compact(runs, found))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

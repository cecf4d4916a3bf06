"""Fuzz what comes from outside: model files, quantised ones too, configurations, tokenizers, chat templates, as
bench/hostile.py makes them.

Every case must end well or in a UserError with a printable message: no other exception, no crash, no hang, bounded
memory. Cases run in worker processes that are watched and replaced. Prints a table and what was found; the last line
is JSON.   PYTHONPATH=src python bench/fuzz.py --count 100000 [--jobs 2] [--only KIND:NUMBER]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import hostile

from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import MESSAGE_CHARACTERS, UserError
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.config import read_json, spec_from_config
from ridgeline.models.load import describe, load, record
from ridgeline.models.weights import map_weights
from ridgeline.text.template import render_chat
from ridgeline.text.tokenizer import Tokenizer

SECONDS = 10.0  # for one case, on a machine that does other things too; they take milliseconds
MEMORY_BYTES = 600 << 20  # more than the process had before: the largest thing allowed is a text of 16 M characters
ADDRESS_BYTES = 4 << 30
TEXT = (
    "Hello hello, wörld \U0001f600 <s></s> aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa! xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx 12"
)
MESSAGES = [
    {"role": "system", "content": ""},
    {"role": "user", "content": "Hello <s> world"},
    {"role": "assistant", "content": "aa bb"},
]


# -- in the worker


def use(kind: str, case: hostile.Case, directory: Path) -> None:
    """What a person's model goes through between its name and its first step."""
    for name, data in case.files.items():
        (directory / name).write_bytes(data)
    if kind == "template":
        render_chat(case.template or "", MESSAGES, tokenizer=_TOKENIZER[0])
    elif kind == "config":
        spec_from_config(read_json(directory / "config.json"), "hostile", "config.json")
        model = describe(f"random:{directory / 'config.json'}")
        if model.spec.layers < 100:
            record(model, STORAGES.get("bf16"))
    elif kind == "tokenizer":
        _read_and_write(Tokenizer.from_directory(directory))
    else:
        model = load(str(directory / "model.gguf") if kind == "gguf" else str(directory))
        record(model, STORAGES.get("bf16"))
        if kind == "quantised":
            map_weights(model.weights, _read)
        tokenizer = model.tokenizer()
        if tokenizer is not None:
            _read_and_write(tokenizer)
            if model.chat_template is not None:
                render_chat(model.chat_template, MESSAGES, tokenizer=tokenizer)


def _read(role: str, weight: StoredWeight) -> StoredWeight:
    """Its bytes put in order, as binding does it."""
    if weight.data is None or len(weight.data) != weight.nbytes:
        raise AssertionError(f"{role}: not the bytes of its shape")
    return weight


def _read_and_write(tokenizer: Tokenizer) -> None:
    for special in (False, True):
        ids = tokenizer.encode(TEXT, special=special)
        tokenizer.decode(ids)
    tokenizer.encode(tokenizer.shield(TEXT), special=True)
    detokenizer = tokenizer.detokenizer()
    detokenizer.push(ids)
    detokenizer.flush()


_TOKENIZER: list[Any] = []  # one for all templates


def outcome(kind: str, number: int, seed: int, directory: Path) -> tuple[str, str]:
    """("ok" | "refused" | "wrong", what)."""
    case = hostile.make(seed, kind, number)
    try:
        use(kind, case, directory)
        return "ok", ""
    except UserError as error:
        message = str(error)
        bad = [c for c in message if not (c.isprintable() or c == "\n")]
        if not message or len(message) > MESSAGE_CHARACTERS or bad:
            said = f"{len(message)} characters" if message and not bad else f"unprintable {bad[:3]!r}"
            return "wrong", f"message with {said} ({_where(error)})"
        return "refused", ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        return "wrong", f"{type(error).__name__}: {str(error)[:150]!r} ({_where(error)})"
    finally:
        for name in case.files:
            with contextlib.suppress(OSError):
                (directory / name).unlink()


def _where(error: BaseException) -> str:
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "ridgeline" in frame.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "outside"


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    return 0


def work(seed: int) -> None:
    """Cases "kind number" on stdin, a line of JSON for each on stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    words = hostile.words_of("gpt2")
    from ridgeline.text.vocabulary import Vocabulary

    types = [3, 3, 3, *[1] * (len(words) - 3)]
    _TOKENIZER.append(Tokenizer.from_vocabulary(Vocabulary("gpt2", "default", words, types), bos=0, eos=(2,)))
    with tempfile.TemporaryDirectory() as name:
        for line in sys.stdin:
            kind, number = line.split()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            before, started = _memory("VmRSS"), time.perf_counter()
            what, why = outcome(kind, int(number), seed, Path(name))
            grown = _memory("VmHWM") - before
            if grown > MEMORY_BYTES and what != "wrong":
                what, why = "wrong", f"{grown >> 20} MiB"
            answers.write(json.dumps([kind, int(number), what, why, grown, time.perf_counter() - started]) + "\n")
            answers.flush()


# -- the watcher


class Worker:
    """A process that works through cases of its own, and is replaced when it dies or hangs."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        self.case: tuple[str, int] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, "--worker", "--seed", str(self.seed)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # who ends the watcher wants its table, not dead workers
        )
        self.is_fresh = True

    def give(self, case: tuple[str, int]) -> None:
        self.case, self.since, self.used_before = case, time.monotonic(), self.used_s()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{case[0]} {case[1]}\n".encode())
        self.process.stdin.flush()

    def answer(self) -> list[Any]:
        """Of a worker that has something to read, or whose time is over."""
        assert self.case is not None and self.process.stdout is not None
        line = self.process.stdout.readline() if select.select([self.process.stdout], [], [], 0)[0] else b""
        if line:
            self.is_fresh = False
            return list(json.loads(line))
        hangs = self.is_late
        if hangs:
            self.process.kill()
        status = self.process.wait()
        why = f"no end after {self.seconds:g} s of the processor" if hangs else f"the process died ({status})"
        self.start()
        return [*self.case, "wrong", why, 0, time.monotonic() - self.since]

    def used_s(self) -> float:
        """Processor seconds of the worker so far; 0 where /proc does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def is_late(self) -> bool:
        """By processor time, for others may have the machine; by the wall clock six times that."""
        allowed = self.seconds + (20 if self.is_fresh else 0)  # imports take a while
        waited = time.monotonic() - self.since
        return waited > 6 * allowed or (waited > allowed and self.used_s() - self.used_before > allowed)


def run(
    cases: list[tuple[str, int]], jobs: int, seed: int, seconds: float, progress: bool, pause: Path | None = None
) -> list[list[Any]]:
    """[kind, number, outcome, why, bytes grown, seconds] of every case; of those done when it is told to end (SIGTERM).

    pause: while this file exists no case is begun, because something else is being measured.
    """
    results: list[list[Any]] = []
    left = iter(cases)
    signal.signal(signal.SIGTERM, lambda number, frame: collections.deque(left, maxlen=0))  # none is left
    busy: list[Worker] = []
    for _ in range(jobs):
        case = next(left, None)
        if case is not None:
            worker = Worker(seed, seconds)
            worker.give(case)
            busy.append(worker)
    while busy:
        ready, _, _ = select.select([worker.process.stdout for worker in busy], [], [], 0.5)
        for worker in list(busy):
            if worker.process.stdout not in ready and not worker.is_late:
                continue
            results.append(worker.answer())
            if progress and len(results) % 5000 == 0:
                print(f"{len(results)} of {len(cases)}", file=sys.stderr, flush=True)
            while pause is not None and pause.exists():
                time.sleep(1)
            case = next(left, None)
            if case is not None:
                worker.give(case)
            else:
                worker.process.kill()
                worker.process.wait()
                busy.remove(worker)
    return results


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=1000, help="cases, all kinds together")
    options.add_argument("--seconds-per-case", type=float, default=SECONDS)
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kinds", default=",".join(hostile.KINDS))
    options.add_argument("--pause-while", type=Path, help="begin no case while this file exists")
    options.add_argument("--only", help="one case again, as KIND:NUMBER, in this process")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        work(given.seed)
        return 0
    kinds = given.kinds.split(",")
    cases = [(kinds[index % len(kinds)], index // len(kinds)) for index in range(given.count)]
    if given.only:
        kind, _, number = given.only.partition(":")
        print(hostile.make(given.seed, kind, int(number)).note)
        cases = [(kind, int(number))]
    is_long = given.count >= 10_000
    results = run(cases, given.jobs, given.seed, given.seconds_per_case, is_long, given.pause_while)
    table = collections.Counter((kind, what) for kind, _, what, *_ in results)
    print(f"{'kind':<14}{'cases':>9}{'ok':>9}{'refused':>9}{'wrong':>9}{'slowest s':>11}{'most MiB':>10}")
    summary = {}
    for kind in kinds:
        mine = [row for row in results if row[0] == kind]
        counts = {what: table[kind, what] for what in ("ok", "refused", "wrong")}
        slowest, most = (max((row[column] for row in mine), default=0) for column in (5, 4))
        print(
            f"{kind:<14}{len(mine):>9}"
            + "".join(f"{n:>9}" for n in counts.values())
            + f"{slowest:>11.2f}{most >> 20:>10}"
        )
        summary[kind] = {"cases": len(mine), **counts, "slowest_s": slowest, "most_bytes": most}
    found = collections.defaultdict(list)
    for kind, number, what, why, *_ in results:
        if what == "wrong":
            found[kind, why].append(number)
    for (kind, why), numbers in sorted(found.items(), key=lambda item: -len(item[1]))[:40]:
        print(f"  {len(numbers):>6} x {kind}: {why}   --only {kind}:{numbers[0]}  all: {numbers[:20]}")
    print(json.dumps({"seed": given.seed, "cases": len(results), "kinds": summary}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

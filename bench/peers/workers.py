"""Engines' worker processes from the outside: starts them, hands them jobs, watches their memory and processor time.

Standard library only. Refuses to wait for ever: a worker that is silent for LIMIT_S is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, TextIO

Json = dict[str, Any]
LIMIT_S = 1800.0
SAMPLE_S = 0.1
MEMORY = ("RssAnon", "RssFile", "RssShmem")


class WorkerError(Exception):
    """A worker failed; the text is the end of what it said."""


def family(pid: int) -> list[int]:
    """A process and its descendants; empty once it has ended."""
    found = [pid]
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    for task in tasks:
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def memory_of(pid: int) -> Json:
    """Resident bytes of a process and its descendants, by kind."""
    total = dict.fromkeys(MEMORY, 0)
    for member in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in total:
                    total[name] += int(value.split()[0]) * 1024
    return total


def cpu_s_of(pid: int) -> float:
    """Processor seconds of a process and its descendants so far."""
    ticks = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


class Worker:
    """One running worker. `ready`: what it said of its start. Raises WorkerError when it does not start."""

    def __init__(self, command: list[str], log: Path, threads: int = 2, limit_s: float = LIMIT_S) -> None:
        settings = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        settings |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
        if "ridgeline_worker.py" not in " ".join(command):
            settings.pop("PYTHONPATH", None)  # of our environment, not of theirs
        self._log, self._limit_s, self.used = log, limit_s, time.monotonic()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin: TextIO = self._process.stdin
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._peak = dict.fromkeys(MEMORY, 0)
        threading.Thread(target=self._sample, daemon=True).start()
        try:
            self.ready: Json = self._answer()["ready"]
        except WorkerError:
            self.stop()
            raise

    def run(self, requests: list[Json], machine: Json | None = None) -> Json:
        """One job's answer, and the peak of its resident memory."""
        self._peak = dict.fromkeys(MEMORY, 0)
        job = {"requests": requests} | ({"machine": machine} if machine else {})
        try:
            self._stdin.write(json.dumps(job) + "\n")
            self._stdin.flush()
        except OSError:
            raise WorkerError(self._last_words()) from None
        answer = self._answer()
        self.used = time.monotonic()
        return answer | {"memory": {name: max(self._peak[name], now) for name, now in self.memory().items()}}

    def memory(self) -> Json:
        return memory_of(self._process.pid)

    def cpu_s(self) -> float:
        return cpu_s_of(self._process.pid)

    def stop(self) -> None:
        """Ask it to end by closing its input, then insist."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)

    def _answer(self) -> Json:
        try:
            line = self._answers.get(timeout=self._limit_s)
        except queue.Empty:
            self._process.kill()
            raise WorkerError(f"no answer within {self._limit_s:.0f} s") from None
        if not line:
            raise WorkerError(self._last_words())
        answer: Json = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        return f"ended with {self._process.returncode}:\n{self._log.read_text(errors='replace')[-2000:]}"

    def _read(self, lines: TextIO) -> None:
        with lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put("")

    def _sample(self) -> None:
        while self._process.poll() is None:
            now = memory_of(self._process.pid)
            self._peak = {name: max(now[name], peak) for name, peak in self._peak.items()}
            time.sleep(SAMPLE_S)

"""The engine's process with one bottleneck planted in it: worker.py's own engine, and a slower part put in its place.

Started by bench/plants.py as EngineClient's `command`. Nothing here touches what is measured or how it is judged.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.engine.process import serve
from ridgeline.kernels import native
from ridgeline.run.runner import Runner
from ridgeline.schedule.policy import Policy
from ridgeline.state.plan import StepPlan
from ridgeline.state.sequence import Rank, Sequence
from ridgeline.state.transfer import LoadBlock, SaveBlock
from ridgeline.worker import make_engine

PROT_READ, MAP_PRIVATE, MAP_FIXED, DONTNEED, PAGE = 1, 2, 16, 4, 4096


def burn(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class BusyPolicy:
    """Another policy, thinking for `busy_s` before every plan."""

    name = "busy"
    is_static = False

    def __init__(self, inner: Policy, busy_s: float) -> None:
        self._inner, self._busy_s = inner, busy_s

    def review(self, waiting: Many[Sequence], running: Many[Sequence], now: float) -> bool:
        burn(self._busy_s)
        return self._inner.is_static or self._inner.review(waiting, running, now)

    def rank(self, sequence: Sequence) -> Rank:
        return self._inner.rank(sequence)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def split_lines(runner: Runner, wait_s: float) -> None:
    """Every operator its own native call, after a wait: what a program of many small calls is. Same numbers."""
    absorbed = runner._emitter._absorbed
    spans: list[tuple[int, int, Any]] = []
    for line in runner.bound.program:
        if line.index not in absorbed:
            spans.append((line.index, line.index + 1, runner._emitter.tape(line.index, line.index + 1)))
    runner._segments = spans
    if wait_s > 0:
        execute = native.execute

        def later(*arguments: Any) -> None:
            burn(wait_s)
            execute(*arguments)

        native.execute = later


class Dropped:
    """Implements StepRunner: before every step, a share of the weights' pages must come from the disk again."""

    def __init__(self, runner: Runner, share: float) -> None:
        self._runner, self._share = runner, share
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = (
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
        )  # fmt: skip
        self._libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._file = tempfile.TemporaryFile(dir="/var/tmp")  # noqa: SIM115  lives as long as the engine
        self._spans = [span for item in runner._emitter.weights._packed.values() if (span := self._map(item))]

    def _map(self, item: Any) -> tuple[int, int, int] | None:
        """(address, bytes, place in the file) of the whole pages of one packed matrix, now a view of the file."""
        data = np.frombuffer(getattr(item, "data", item), np.uint8)
        begin = -(-data.ctypes.data // PAGE) * PAGE
        nbytes = (data.ctypes.data + data.nbytes - begin) // PAGE * PAGE
        if nbytes < 1 << 16:
            return None
        place = -(-self._file.seek(0, os.SEEK_END) // PAGE) * PAGE
        self._file.seek(place)
        self._file.write(ctypes.string_at(begin, nbytes))
        self._file.flush()
        os.fsync(self._file.fileno())
        got = self._libc.mmap(begin, nbytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, self._file.fileno(), place)
        if got != begin:
            raise OSError(ctypes.get_errno(), "mmap")
        return begin, nbytes, place

    def submit(self, plan: StepPlan) -> object:
        left = self._share * sum(nbytes for _, nbytes, _ in self._spans)
        for begin, nbytes, place in self._spans:
            take = int(min(left, nbytes)) // PAGE * PAGE
            if take <= 0:
                break
            self._libc.madvise(begin, take, DONTNEED)
            os.posix_fadvise(self._file.fileno(), place, take, os.POSIX_FADV_DONTNEED)
            left -= take
        return self._runner.submit(plan)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def throttle(runner: Runner, block_s: float) -> None:
    """A slow link: every block that is saved outside the pool or comes back takes `block_s` longer."""
    carry_out = runner._mover.run

    def run(transfers: Any) -> int:
        moves = tuple(transfers)
        taken_ns = carry_out(moves)
        slow_ns = int(1e9 * block_s * sum(isinstance(move, SaveBlock | LoadBlock) for move in moves))
        time.sleep(slow_ns * 1e-9)
        return taken_ns + slow_ns

    runner._mover.run = run


def planted(plant: dict[str, float], engine: Engine) -> Engine:
    if "busy_s" in plant:
        engine.scheduler.policy = BusyPolicy(engine.scheduler.policy, plant["busy_s"])
    if "wait_s" in plant:
        split_lines(engine.runner, plant["wait_s"])
    if "block_s" in plant:
        throttle(engine.runner, plant["block_s"])
    if "dropped" in plant:
        engine.runner = Dropped(engine.runner, plant["dropped"])
    return engine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plant", required=True, help="JSON: busy_s, wait_s, block_s or dropped")
    parser.add_argument("--fd", type=int, required=True)
    arguments = parser.parse_args()
    plant = json.loads(arguments.plant)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def make(config: EngineConfig) -> Engine:
        return planted(plant, make_engine(config))

    return serve(socket.socket(fileno=arguments.fd), make)


if __name__ == "__main__":
    sys.exit(main())

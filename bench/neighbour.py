"""Beside a process that takes a core, and at rest (issue 4): the thread team must stay correct, quick and quiet.

python bench/neighbour.py MODEL [--seconds 4]      the last line is one JSON document
Decode steps of one sequence, alone and beside one busy loop per core less one, with one thread (the control) and with
all. The team passes when its slow-down is at most 1.5 times the control's. Idle: CPU time of an engine that waits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import closing

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.run.machine import fingerprint, usable_cores
from ridgeline.state.request import Request

LIMIT = 1.5


def steps(model: str, threads: int, seconds: float) -> list[float]:
    """Milliseconds of decode steps within about `seconds`."""
    taken: list[float] = []
    with closing(build(EngineConfig(model, threads=threads, context=4096, kv_bytes=1 << 28))) as engine:
        engine.add(Request("steps", tuple(range(100, 116)), 4000, ignore_stop=True))
        engine.step()
        end = time.perf_counter() + seconds
        while engine.has_work and time.perf_counter() < end:
            began = time.perf_counter()
            engine.step()
            taken.append((time.perf_counter() - began) * 1e3)
    return taken


def idle_share(model: str, seconds: float) -> float:
    """CPU time of this process over wall time, while an engine that has worked has nothing to do."""
    with closing(build(EngineConfig(model, context=512, kv_bytes=1 << 26))) as engine:
        engine.add(Request("warm", tuple(range(100, 116)), 8, ignore_stop=True))
        while engine.has_work:
            engine.step()
        time.sleep(0.1)
        began, used = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        return (time.process_time() - used) / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    cores = usable_cores()
    means: dict[tuple[int, bool], list[float]] = {}
    worst: dict[tuple[int, bool], float] = {}
    for _ in range(asked.rounds):
        for beside in (False, True):
            hogs = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores - 1 if beside else 0)
            ]
            try:
                for threads in (1, cores):
                    taken = steps(asked.model, threads, asked.seconds)
                    key = (threads, beside)
                    means.setdefault(key, []).append(statistics.mean(taken))
                    worst[key] = max(worst.get(key, 0.0), max(taken))
            finally:
                for hog in hogs:
                    hog.kill()
                    hog.wait()
    slower = {}
    for threads in (1, cores):
        alone, beside_ms = (statistics.median(means[threads, beside]) for beside in (False, True))
        slower[threads] = beside_ms / alone
        print(
            f"{threads} threads: {alone:.2f} ms alone, {beside_ms:.2f} ms beside {cores - 1} busy: "
            f"{slower[threads]:.2f} times, worst step {worst[threads, True]:.1f} ms"
        )
    idle = idle_share(asked.model, 2.0)
    relative = slower[cores] / slower[1]
    print(f"slow-down of {cores} threads over that of one: {relative:.2f} (limit {LIMIT}); idle: {idle:.2%} of a core")
    document = {"bench": "neighbour", "model": asked.model, "slower": slower, "relative": relative, "idle": idle}
    print(
        json.dumps(document | {"worst_ms": {str(key): value for key, value in worst.items()}, "cpu": fingerprint().cpu})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What an engine's worker process speaks: one JSON document a line. Standard library only, for any environment.

It prints {"ready": {"start_s", "first_token_s"}} once (seconds from the start of its process), then answers each
{"requests": [{"prompt_ids", "output_tokens"}], "machine"?} with {"requests": [{"ids", "ttft_s", "e2e_s"}], "wall_s",
"facts", ...} (seconds from the start of the job, by its own clock). {"error": text} ends it, and so does the end of its
input. What libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

Json = dict[str, Any]
WARM_UP: list[Json] = [{"prompt_ids": list(range(500, 564)), "output_tokens": 8}]


class Engine(Protocol):
    """A loaded engine. facts: "build" (versions and flags), "weight_bytes", and what else its table should show."""

    facts: Json

    def run(self, job: Json) -> Json:
        """Do all requests, greedy, to their full output length; at least {"requests": [...]}."""
        ...


class Watch:
    """Writes down the ids of several requests, and when they came."""

    def __init__(self, requests: int) -> None:
        self._start = time.perf_counter()
        self._ids: list[list[int]] = [[] for _ in range(requests)]
        self._first_s: list[float | None] = [None] * requests
        self._last_s = [0.0] * requests

    def add(self, request: int, ids: list[int]) -> None:
        if ids:
            now = time.perf_counter() - self._start
            self._first_s[request] = now if self._first_s[request] is None else self._first_s[request]
            self._last_s[request] = now
            self._ids[request] += ids

    def results(self) -> list[Json]:
        return [
            {"ids": ids, "ttft_s": first_s, "e2e_s": last_s}
            for ids, first_s, last_s in zip(self._ids, self._first_s, self._last_s, strict=True)
        ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="in the form that this engine loads")
    parser.add_argument("--precision", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environment", type=Path, help="for engines that are programs")
    parser.add_argument("--context", type=int, default=8192, help="longest prompt and output together")
    return parser.parse_args()


def serve(load: Callable[[argparse.Namespace], Engine]) -> None:
    """Load, warm up, and do jobs until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that a library that prints cannot break the conversation
    try:
        engine = load(arguments())
        start_s = _age_s()
        done = _do(engine, {"requests": WARM_UP})
        first = done["requests"][0]  # its end for who does not tell when the first token came
        after_s = done["wall_s"] - (first["ttft_s"] or first["e2e_s"])
        _say(out, {"ready": {"start_s": start_s, "first_token_s": _age_s() - after_s}})
        for line in sys.stdin:
            _say(out, _do(engine, json.loads(line)))
    except Exception:
        _say(out, {"error": traceback.format_exc()})
        raise SystemExit(1) from None


def _do(engine: Engine, job: Json) -> Json:
    begin = time.perf_counter()
    answer = engine.run(job)
    wall_s = time.perf_counter() - begin
    for asked, done in zip(job["requests"], answer["requests"], strict=True):
        if len(done["ids"]) != asked["output_tokens"]:
            raise ValueError(f"made {len(done['ids'])} tokens of {asked['output_tokens']}")
    return {"wall_s": wall_s, "facts": engine.facts} | answer


def _age_s() -> float:
    """Seconds since this process started, in steps of 10 ms."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _say(out: TextIO, message: Json) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()

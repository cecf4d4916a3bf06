"""Overload: ten times what a server can do for a minute, against the peak it had before; and what the server adds.

python bench/serve_overload.py --seconds 60
The engine is a script (150 ms, then 10 ms a token; 8 at a time), so capacity is known. Goodput: requests whose first
token came within the limit. Then 64 streams: added latency a token at the caller. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from typing import Any

import msgspec

from ridgeline.perf.arrivals import Lengths, in_turn, poisson
from ridgeline.perf.http_load import Aim, HttpLoad
from ridgeline.perf.replay import Replay
from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch

FIRST_MS, NEXT_MS, SLOTS, TOKENS, WAIT_S = 150, 10, 8, 64, 2.0
CAPACITY = SLOTS / ((FIRST_MS + NEXT_MS * (TOKENS - 1)) / 1000)
LIMIT_S = WAIT_S + 1.5


def good_per_s(run: Replay) -> float:
    """By when requests were meant to come: the queue that is left at the end is not counted for or against."""
    span_s = max(one.arrival_s for one in run.requests) or 1.0
    good = [one for one in run.requests if one.ttft_s is not None and one.ttft_s <= LIMIT_S]
    return len(good) / max(span_s, run.summary.wall_s)


def measured(slots: int, seconds: float, factor: float, streams: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "ridgeline.cli.main", "serve", "smollm2-135m", "--port", "0", "--json"]
    command += ["--scripted", f"{FIRST_MS},{NEXT_MS}", "--max-sequences", str(slots), "--max-queue-wait", str(WAIT_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        found = re.search(r"http://[\d.]+:\d+", server.stdout.readline())  # type: ignore[union-attr]
        aim = Aim(found[0], "smollm2-135m")  # type: ignore[index]
        lengths = Lengths(16, TOKENS)
        HttpLoad(aim).run(in_turn(2 * slots, lengths), clients=slots)
        if streams:
            run = HttpLoad(aim).run(in_turn(4 * streams, lengths), clients=streams)
            server.terminate()
            gaps = sorted(gap for one in run.requests for gap in one.gaps_s)
            added = [1000 * gaps[int(share * (len(gaps) - 1))] - NEXT_MS for share in (0.5, 0.9, 0.99)]
            tail_ms = 1000 * run.summary.tpot_s.p99 - NEXT_MS  # type: ignore[union-attr]
            shares = dict(zip(("p50", "p90", "p99"), added, strict=True))
            return {"streams": streams, "failed": run.summary.failed, "added_ms": shares, "tpot_p99_added_ms": tail_ms}
        peak = HttpLoad(aim).run(poisson(CAPACITY, int(CAPACITY * 20), lengths, seed=1))
        over = HttpLoad(aim).run(poisson(factor * CAPACITY, int(factor * CAPACITY * seconds), lengths, seed=2))
        server.terminate()
    refused = [one for one in over.requests if one.error is not None]
    waits = sorted(one.refused_s or 0.0 for one in refused)
    return {
        "capacity_per_s": CAPACITY, "factor": factor, "seconds": seconds, "peak_goodput_per_s": good_per_s(peak),
        "goodput_per_s": good_per_s(over), "share": good_per_s(over) / good_per_s(peak), "refused": len(refused),
        "errors": sorted({one.error for one in refused}), "with_retry_after": sum(one.has_retry for one in refused),
        "refusal_s": {share: waits[int(share * (len(waits) - 1))] for share in (0.5, 0.99, 1.0)} if waits else {},
        "late_s": over.summary.late_s,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=64)
    asked = parser.parse_args()
    watch = CpuWatch()
    document = {
        "overload": measured(SLOTS, asked.seconds, asked.factor, 0),
        "added": [measured(64, 0, 0, streams) for streams in (1, 16, asked.streams)],
        "foreign_cpu_share": watch.foreign_cpu_share(),
    }  # fmt: skip
    print(json.dumps(document, indent=1))
    print(
        json.dumps({"schema": "ridgeline.serve_overload/1", **document, "machine": msgspec.to_builtins(fingerprint())})
    )


if __name__ == "__main__":
    main()

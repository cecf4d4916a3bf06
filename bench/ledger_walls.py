"""Every request's intervals beside the caller's own stopwatch, on a real model and a real clock (issue 5).

python bench/ledger_walls.py MODEL [--runs 2] [--requests 24] [--draft MODEL]
Random schedules through LLM() and the engine's process: arrivals, lengths, priorities, cancellations and slow readers,
with each way to lose or save time turned on: guessing ahead, a pool too small for all (preempted, computed again),
kept state in host memory (moved out and back), static batches. Sum of intervals = stopwatch, residual < 2 %.
Prints a table; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from host_path import show

from ridgeline.llm import LLM
from ridgeline.perf.ledger import RunLedger
from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch
from ridgeline.state.request import Request

CONTEXT = 256
TOKEN_BYTES = 23_040  # of SmolLM2-135M in bf16; the small pools hold so many tokens
SMALL = {"kv_bytes": 400 * TOKEN_BYTES, "policy": "priority"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no prefix cache": {"prefix": False},
    "guessing (ngram)": {"spec": "ngram:k=4,adapt=off"},
    "guessing (draft model)": {"spec": "draft:DRAFT,k=3,adapt=off"},
    "small pool": SMALL,
    "small pool, host tier": SMALL | {"host_kv_bytes": 64 << 20},
    "small pool, guessing": SMALL | {"spec": "ngram:k=4,adapt=off"},
    "static batches": {"batching": "static", "max_sequences": 4},
    "disaggregated": {"place": "disaggregated"},
}  # fmt: skip


@dataclass
class Caller:
    """Asks on its own clock; knows nothing of the engine's."""

    llm: LLM
    begun: dict[str, int] = field(default_factory=dict)  # nanoseconds
    ended: dict[str, int] = field(default_factory=dict)

    def ask(self, request: Request, cancel_s: float | None) -> None:
        """Read its events to the end in a thread; perhaps give up after a while."""
        self.begun[request.id] = time.perf_counter_ns()
        stream = self.llm.submit(request)
        if cancel_s is not None:
            timer = threading.Timer(cancel_s, stream.cancel)
            timer.daemon = True
            timer.start()
        for _ in stream:
            pass
        self.ended[request.id] = time.perf_counter_ns()

    def read_slowly(self, prompt: tuple[int, ...], output: int, pause_s: float, taken: list[int]) -> None:
        """Through LLM.stream, text and all; its name is the ledger's to say, so only the time is kept."""
        began = last = time.perf_counter_ns()
        for _ in self.llm.stream(prompt, max_tokens=output, ignore_stop=True):
            last = time.perf_counter_ns()
            time.sleep(pause_s)
        taken.append(last - began)


def one_run(llm: LLM, requests: int, seed: int) -> tuple[Caller, list[int], RunLedger]:
    draw, caller, taken = random.Random(seed), Caller(llm), []
    llm.ledger(reset=True)
    threads = []
    for number in range(requests):
        begin, length = draw.choice((0, 0, 31, 77)), draw.randint(4, 180)
        prompt = tuple(200 + begin + (i * 7) % 3000 for i in range(length))
        output = draw.randint(1, 60)
        if draw.random() < 0.2:
            work: Any = caller.read_slowly
            given: tuple[Any, ...] = (prompt, min(output, 12), draw.uniform(0, 0.02), taken)
        else:
            request = Request(f"r{seed}-{number}", prompt, output, ignore_stop=True, priority=draw.randint(0, 2))
            work, given = caller.ask, (request, draw.uniform(0, 0.6) if draw.random() < 0.3 else None)
        threads.append(threading.Thread(target=work, args=given))
        threads[-1].start()
        time.sleep(draw.expovariate(1 / 0.03))
    for thread in threads:
        thread.join()
    return caller, taken, llm.ledger()


def judged(name: str, caller: Caller, taken: list[int], ledger: RunLedger, found: dict[str, Any]) -> None:
    """Adds a run to the row of its kind."""
    known = {one.request_id: one for one in ledger.requests}
    slow = sorted(one.e2e_ns for one in ledger.requests if one.request_id not in caller.begun)
    pairs = [(known[who].e2e_ns, caller.ended[who] - began) for who, began in caller.begun.items()]
    pairs += list(zip(slow, sorted(taken), strict=True))  # those have no name here: the n-th longest of both
    off = [abs(told - own) / own for told, own in pairs]
    found["requests"] += len(pairs)
    found["cancelled"] += sum(one.finish == "cancelled" for one in ledger.requests)
    found["preemptions"] += sum(one.preemptions for one in ledger.requests)
    found["guessed"] += sum(one.tokens_guessed for one in ledger.requests)
    found["cached"] += sum(one.cached_tokens for one in ledger.requests)
    found["sum is wall"] &= all(sum(one.wall_ns.values()) == one.e2e_ns for one in ledger.requests)
    found["worst residual %"] = max(
        found["worst residual %"], *(100 * one.residual_ns / one.e2e_ns for one in ledger.requests)
    )
    found["worst off stopwatch %"] = max(found["worst off stopwatch %"], 100 * max(off))
    found["over 2 %"] += sum(share > 0.02 for share in off)
    worst = max(abs(told - own) for told, own in pairs)
    found["worst off us"] = max(found["worst off us"], worst / 1e3)
    found["wall"].update(ledger.wall_ns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=2, help="random schedules of every kind")
    parser.add_argument("--requests", type=int, default=24, help="of a schedule")
    parser.add_argument("--draft", help="the model that guesses; the same one if not given")
    asked = parser.parse_args()
    cpu, rows = CpuWatch(), []
    for name, options in KINDS.items():
        spec = {"spec": options["spec"].replace("DRAFT", asked.draft or asked.model)} if "spec" in options else {}
        found: dict[str, Any] = {
            "kind": name, "requests": 0, "cancelled": 0, "preemptions": 0, "guessed": 0, "cached": 0,
            "sum is wall": True, "worst residual %": 0.0, "worst off stopwatch %": 0.0, "worst off us": 0.0,
            "over 2 %": 0, "wall": Counter(),
        }  # fmt: skip
        with LLM(asked.model, **({"context": CONTEXT, "max_sequences": 8} | options | spec)) as llm:
            llm.generate([(1, 2, 3)], max_tokens=4)
            for seed in range(asked.runs):
                judged(name, *one_run(llm, asked.requests, seed), found)
        rows.append(found)
    walls = {row["kind"]: dict(row.pop("wall")) for row in rows}
    show("sum of intervals, beside each caller's own stopwatch", rows)
    whole: Counter[str] = Counter()
    for wall in walls.values():
        whole.update(wall)
    shares = [{"interval": name, "% of all": 100 * spent / whole.total()} for name, spent in whole.most_common()]
    show("intervals that occurred", shares)
    share = cpu.foreign_cpu_share()
    print(f"\nforeign CPU share {share}")
    print(json.dumps({
        "bench": "ledger_walls", "date": str(datetime.date.today()), "argv": sys.argv[1:],
        "machine": fingerprint().cpu, "rows": rows, "walls_ns": walls, "foreign_cpu_share": share,
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

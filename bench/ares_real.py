"""ARES/STAR for real: one prefill and two decode engines on this machine make again, with their prompts and seeds,
answers that `ridgeline learn` kept and did not learn from. Used by ares.py.
"""

from __future__ import annotations

import itertools
import json
import queue
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ares_simulated import ROWS, ms, tpots

from ridgeline.llm import LLM
from ridgeline.models.load import describe
from ridgeline.run.noise import CpuWatch
from ridgeline.schedule.predict.answers import Answers, read_answers
from ridgeline.schedule.predict.mlp import lengths_file
from ridgeline.schedule.predict.prompts import made_prompts
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request, Sampling

Json = dict[str, Any]
LONGEST = 512  # tokens of an answer, as `ridgeline learn` asks
SHOWN = ("tpot_p50_ms", "tpot_p99_ms", "gap_p99_ms", "wall_s", "moved")


def real(model: str, rounds: int, wave: int, out: Path, seconds: float) -> Json:
    """Waves of answers that were not learned from: same prompts and seeds, so their lengths are known. imbalanced: long
    and short ones in turn, so that round-robin gives one decode engine all the long ones; alike: as many of middle
    length. The oracle is told the lengths; the others see only what an engine sees. Stops after so many seconds, and
    goes on where it stopped; every row has its turn at being first."""
    begun = time.monotonic()
    answers = read_answers(lengths_file(describe(model).spec.name, "answers"))
    waves = {"imbalanced": _in_turn(answers, wave), "alike": _middle(answers, wave)}
    there = {(row["round"], row["regime"], row["row"]) for row in _read(out)}
    engines: dict[str, LLM] = {}
    try:
        for number, (kind, chosen) in itertools.product(range(rounds), waves.items()):
            for label, route, moves in (*ROWS[number % len(ROWS) :], *ROWS[: number % len(ROWS)]):
                if (number, kind, label) in there or time.monotonic() - begun > seconds:
                    continue
                if label not in engines:
                    place = f"disaggregated:engines=1+2,threads=1+1,route={route},rebalance={moves}"
                    engines[label] = LLM(model, place=place, context=1024, max_sequences=32, kv_bytes=128 << 20)
                    _wave(engines[label], answers, waves["alike"][:2], f"warm-{label}", is_told=True)
                watch = CpuWatch()
                row: Json = {"round": number, "regime": kind, "row": label}
                row |= _measured(engines[label], answers, chosen, f"{kind}-{number}", is_told=moves == "oracle")
                row["foreign"] = watch.foreign_cpu_share()
                print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    finally:
        for llm in engines.values():
            llm.close()
    lengths = {kind: [int(answers.lengths[one]) for one in chosen] for kind, chosen in waves.items()}
    return {"rows": _read(out), "table": _table(_read(out), tuple(waves)), "lengths": lengths}


def _table(rows: list[Json], kinds: tuple[str, ...]) -> list[Json]:
    """Of each row of each regime: median, least and most over the rounds."""
    found: list[Json] = []
    print(f"| regime | row | rounds | {' | '.join(SHOWN)} |")
    for kind, (label, _, _) in itertools.product(kinds, ROWS):
        own = [row for row in rows if (row["regime"], row["row"]) == (kind, label)]
        if not own:
            continue
        each = {key: [float(row[key]) for row in own] for key in SHOWN}
        told = {key: [statistics.median(one), min(one), max(one)] for key, one in each.items()}
        found.append({"regime": kind, "row": label, "rounds": len(own), **told})
        cells = (f"{middle:.1f} ({least:.1f} to {most:.1f})" for middle, least, most in told.values())
        print(f"| {kind} | {label} | {len(own)} | {' | '.join(cells)} |")
    return found


def _read(out: Path) -> list[Json]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def _measured(llm: LLM, answers: Answers, chosen: list[int], name: str, *, is_told: bool) -> Json:
    client: Any = llm._client
    before, begun = client.moved, time.perf_counter()
    times, lengths = _wave(llm, answers, chosen, name, is_told=is_told)
    wall_s = time.perf_counter() - begun
    each, gaps = tpots({key: one for key, one in times.items() if len(one) > 16})
    return {
        "tpot_p50_ms": ms(each, 50), "tpot_p99_ms": ms(each, 99), "gap_p99_ms": ms(gaps, 99), "wall_s": wall_s,
        "moved": client.moved - before, "as_before": lengths == [int(answers.lengths[one]) for one in chosen],
    }  # fmt: skip


def _in_turn(answers: Answers, count: int) -> list[int]:
    """Of the test part: the longest and the shortest by turns."""
    order = sorted(np.unique(answers.request[answers.looks("test")]), key=lambda one: answers.lengths[one])
    return [int(order[-1 - number // 2] if number % 2 == 0 else order[number // 2]) for number in range(count)]


def _middle(answers: Answers, count: int) -> list[int]:
    """Of the test part: those about as long as the mean of the longest and the shortest."""
    turn = _in_turn(answers, count)
    wanted = float(np.mean(answers.lengths[turn]))
    owners = np.unique(answers.request[answers.looks("test")])
    return [int(one) for one in sorted(owners, key=lambda one: abs(answers.lengths[one] - wanted))[:count]]


def _wave(
    llm: LLM, answers: Answers, chosen: list[int], name: str, *, is_told: bool
) -> tuple[dict[str, list[float]], list[int]]:
    """All at once; (times of the tokens of each, their lengths). is_told: lengths are part of the requests."""
    inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    prompts = made_prompts(answers.total)
    times: dict[str, list[float]] = {}

    def deliver(key: str) -> Callable[[Any], None]:
        return lambda event: inbox.put((key, event))

    for number, one in enumerate(chosen):
        ids = llm.render([{"role": "user", "content": prompts[one].text}])
        key, most = f"{name}-{number}", int(answers.lengths[one]) if is_told else LONGEST
        sampling = Sampling(temperature=0.7, top_p=0.95, seed=one)  # as `ridgeline learn` asks
        times[key] = []
        llm.submit_to(Request(key, ids, most, sampling, llm.facts.eos, ignore_stop=is_told), deliver(key))
    left = len(chosen)
    while left:
        key, event = inbox.get(timeout=600)
        if not isinstance(event, TokenEvent):
            raise event
        times[key] += [event.at_s] * len(event.tokens)
        left -= event.finish is not None
    return times, [len(one) for one in times.values()]

"""What each policy is for, on the virtual clock: the real scheduler and memory, every step taking its estimated time.

Nothing is loaded, so the figures are the same on every machine (that of ROUND). Prints five tables, then one line of
JSON.   PYTHONPATH=src python bench/policies.py [--requests 600] [--seed 0]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ridgeline.engine.build import rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.kit.clock import VirtualClock
from ridgeline.run.machine import Fingerprint, Machine, ReadRate
from ridgeline.schedule.fair import FairPolicy
from ridgeline.state.request import Request

SHAPE = {  # 100 million weights in few layers, so that estimating a step is quick
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SLOTS = 16
ROUND = Machine(  # two cores of a small server, in round numbers
    Fingerprint("round", 2, (), 0, "", ""), 2, (ReadRate(2, 1 << 28, 2e10, 2e10),),
    {"f32": 2e11, "int8": 4e11}, 5e-6, "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a workload."""

    prompt: int
    output: int
    arrival_s: float = 0.0
    priority: int = 0
    tenant: str = ""
    deadline_s: float | None = None
    ttft_deadline_s: float | None = None


@dataclass(slots=True)
class Seen:
    """Seconds from arrival; inf where it never came."""

    ask: Ask
    ttft_s: float = math.inf
    e2e_s: float = math.inf
    preemptions: int = 0

    @property
    def is_in_time(self) -> bool:
        last, first = self.ask.deadline_s, self.ask.ttft_deadline_s
        return self.e2e_s <= (math.inf if last is None else last) and self.ttft_s <= (
            math.inf if first is None else first
        )


def drive(
    policy: str, asks: Sequence[Ask], until_s: float = math.inf,
    watch: Callable[[Engine, float], None] = lambda engine, now: None, **options: object,
) -> list[Seen]:  # fmt: skip
    """Every ask at its time, through the engine; stops at until_s. watch: called after each step."""
    clock = VirtualClock()
    settings = {"context": 2048, "max_sequences": SLOTS, "step_tokens": 128, "kv_bytes": 1 << 28} | options
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "config.json")
        path.write_text(json.dumps(SHAPE))
        config = EngineConfig(f"random:{path}", policy=policy, prefix=False, **settings)  # type: ignore[arg-type]
        engine = rehearse(config, ROUND, clock)
    seen = [Seen(ask) for ask in asks]
    order = sorted(range(len(asks)), key=lambda index: asks[index].arrival_s)
    sent = 0
    while (sent < len(asks) or engine.has_work) and clock.now() < until_s:
        if not engine.has_work:
            clock.advance(max(asks[order[sent]].arrival_s - clock.now(), 0.0))
        while sent < len(asks) and asks[order[sent]].arrival_s <= clock.now():
            engine.add(_request(order[sent], asks[order[sent]]))
            sent += 1
        for event in engine.step():
            one = seen[int(event.request)]
            one.ttft_s = min(one.ttft_s, event.at_s - one.ask.arrival_s)
            one.preemptions = event.preemptions
            if event.finish:
                one.e2e_s = event.at_s - one.ask.arrival_s
        watch(engine, clock.now())
    return seen


def _request(index: int, ask: Ask) -> Request:
    return Request(
        str(index), (5,) * ask.prompt, ask.output, ignore_stop=True, priority=ask.priority, arrival_s=ask.arrival_s,
        tenant=ask.tenant, deadline_s=ask.deadline_s, ttft_deadline_s=ask.ttft_deadline_s,
    )  # fmt: skip


def lognormal(draw: random.Random, mean: float, sigma: float, least: int, most: int) -> int:
    return max(least, min(most, round(draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))


def chat(draw: random.Random, *, is_related: bool = False) -> Ask:
    """Lengths of a small chat mix; is_related: a longer prompt means a longer answer, on average."""
    prompt = lognormal(draw, 100, 0.8, 8, 512)
    return Ask(prompt, lognormal(draw, 0.6 * prompt if is_related else 60, 0.7, 4, 256))


def poisson(asks: Sequence[Ask], per_s: float, draw: random.Random) -> list[Ask]:
    times = itertools.accumulate(draw.expovariate(per_s) for _ in asks)
    return [replace(ask, arrival_s=at) for ask, at in zip(asks, times, strict=True)]


def capacity(draw: random.Random, *, is_related: bool = False) -> float:
    """Requests a second that this engine finishes with everybody there from the start."""
    asks = [chat(draw, is_related=is_related) for _ in range(200)]
    return len(asks) / max(one.e2e_s for one in drive("fcfs", asks))


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def show(title: str, rows: Sequence[dict[str, object]]) -> None:
    print(f"\n{title}")
    print("  " + "".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        print("  " + "".join(f"{v:>16.3f}" if isinstance(v, float) else f"{v:>16}" for v in row.values()))


# -- one cell a policy


def cell_priority(count: int, seed: int, overload: float = 10.0) -> list[dict[str, object]]:
    """High at 0.3 of capacity; low fills up to `overload` times capacity. TTFT of high beside its TTFT alone."""
    draw = random.Random(seed)
    most = capacity(draw)
    high = poisson([chat(draw) for _ in range(count // 10)], 0.3 * most, draw)
    span = high[-1].arrival_s
    low = [replace(chat(draw), priority=1) for _ in range(round((overload - 0.3) * most * span))]
    low = [replace(ask, arrival_s=draw.uniform(0, span)) for ask in low]
    rows = []
    for name, policy, asks in (
        ("high alone", "fcfs", high),
        ("fcfs", "fcfs", high + low),
        ("priority", "priority", high + low),
        ("patience 5 s", "priority:patience_s=5", high + low),
    ):
        seen = drive(policy, asks)
        mine, others = seen[: len(high)], seen[len(high) :]
        first = [one.ttft_s for one in mine]
        row: dict[str, object] = {"policy": name, "requests": len(seen), "high ttft p50": percentile(first, 0.5)}
        row["high ttft p99"] = percentile(first, 0.99)
        row["high e2e mean"] = mean([one.e2e_s for one in mine])
        row["low worst e2e"] = max((one.e2e_s for one in others), default=0.0)
        row["unfinished"] = sum(math.isinf(one.e2e_s) for one in seen)
        rows.append(row)
    return rows


LOADS = (0.3, 0.6, 0.9, 1.1, 1.5, 2.0, 3.0)


def cell_deadline(count: int, seed: int, loads: Sequence[float] = LOADS) -> list[dict[str, object]]:
    """Share of requests in time. Deadlines 4 to 20 times the time alone, for first and for last token."""
    draw = random.Random(seed)
    most = capacity(draw)
    alone_s = 1 / (most / SLOTS)  # a request's time in a full batch
    asks = []
    for _ in range(count):
        ask, slack = chat(draw), draw.choice((1.0, 2.0, 5.0))
        asks.append(replace(ask, deadline_s=slack * 2 * alone_s, ttft_deadline_s=slack * alone_s))
    rows = []
    for load in loads:
        arriving = poisson(asks, load * most, random.Random(seed + 1))
        row: dict[str, object] = {"load": load}
        for name in ("fcfs", "deadline:predict=none", "deadline", "deadline:predict=oracle"):
            seen = drive(name, arriving)
            row[name.replace("deadline:predict=", "").replace("deadline", "prompt")] = mean(
                [float(one.is_in_time) for one in seen]
            )
        rows.append(row)
    return rows


def cell_shortest(count: int, seed: int, loads: Sequence[float] = (0.7, 0.9, 1.2, 2.0)) -> list[dict[str, object]]:
    """Mean latency. related: long prompts get long answers; unrelated: a predictor that looks at prompts is blind."""
    rows = []
    for is_related in (True, False):
        draw = random.Random(seed)
        most = capacity(draw, is_related=is_related)
        asks = [chat(draw, is_related=is_related) for _ in range(count)]
        for load in loads:
            arriving = poisson(asks, load * most, random.Random(seed + 1))
            row: dict[str, object] = {"lengths": "related" if is_related else "unrelated", "load": load}
            for predict in ("none", "prompt", "oracle"):
                seen = drive(f"shortest:predict={predict}", arriving)
                row[f"{predict} mean"] = mean([one.e2e_s for one in seen])
                row[f"{predict} p99"] = percentile([one.e2e_s for one in seen], 0.99)
            rows.append(row)
    return rows


def cell_fair(count: int, seed: int) -> list[dict[str, object]]:
    """A greedy tenant asks for 5 times capacity, a modest one for 0.4: what the modest one gets."""
    draw = random.Random(seed)
    most = capacity(draw)
    modest = poisson([replace(chat(draw), tenant="modest") for _ in range(count // 10)], 0.4 * most, draw)
    span = modest[-1].arrival_s
    greedy = poisson([replace(chat(draw), tenant="greedy") for _ in range(round(5 * most * span))], 5 * most, draw)
    rows = []
    for name, policy, asks in (
        ("modest alone", "fcfs", modest),
        ("fcfs", "fcfs", modest + greedy),
        ("fair", "fair", modest + greedy),
    ):
        seen = drive(policy, asks, until_s=span)
        mine = seen[: len(modest)]
        early = [one for one in mine if one.ask.arrival_s < 0.8 * span]  # the others may just not have had the time
        done = sum(one.ask.prompt + one.ask.output for one in early if one.e2e_s < math.inf)
        row: dict[str, object] = {"policy": name, "ttft p50": percentile([one.ttft_s for one in mine], 0.5)}
        row["ttft p90"] = percentile([one.ttft_s for one in mine], 0.9)
        row["share of ask"] = done / sum(one.ask.prompt + one.ask.output for one in early)
        rows.append(row)
    return rows


def cell_shares(count: int, seed: int) -> list[dict[str, object]]:
    """Two tenants that always wait, b's requests four times as long. Service: prompt tokens + 2 x output tokens."""
    rows = []
    for weights in ("a=1", "a=3", "a=10"):
        draw = random.Random(seed)
        most = capacity(draw)
        long = [replace(chat(draw), tenant="b") for _ in range(count)]
        asks = [replace(ask, tenant="a", prompt=-(-ask.prompt // 4), output=-(-ask.output // 4)) for ask in 8 * long]
        differences: list[float] = []
        last: dict[str, float] = {}

        def watch(engine: Engine, now: float) -> None:
            policy = engine.scheduler.policy
            assert isinstance(policy, FairPolicy)
            last.update((tenant, policy.service(tenant)) for tenant in "ab")  # noqa: B023
            differences.append(abs(last["a"] - last["b"]))  # noqa: B023

        drive(f"fair:weights={weights}", asks + long, until_s=0.5 * count / most, watch=watch)
        weight = float(weights.partition("=")[2])
        row: dict[str, object] = {"weights": weights, "tokens a / b": weight * last["a"] / last["b"]}
        row["worst differ."] = max(differences)
        row["bound"] = float(SLOTS * max(ask.prompt + 2 * ask.output for ask in long))
        row["service of a"] = last["a"]
        rows.append(row)
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=600)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    cells = {
        "priority": cell_priority(given.requests, given.seed),
        "deadline": cell_deadline(given.requests, given.seed),
        "shortest": cell_shortest(given.requests, given.seed),
        "fair": cell_fair(given.requests, given.seed),
        "shares": cell_shares(given.requests, given.seed),
    }
    show("priority: seconds; high class at 0.3 of capacity, all together 10 times capacity", cells["priority"])
    show("deadline: share of requests in time, by load (1 = capacity)", cells["deadline"])
    show("shortest: seconds from arrival to last token, by predictor", cells["shortest"])
    show("fair: a modest tenant beside a greedy one", cells["fair"])
    show("fair: two tenants that always wait; service in tokens divided by weight", cells["shares"])
    print(json.dumps(finite({"requests": given.requests, "seed": given.seed, **cells})))


def finite(value: object) -> object:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and math.isinf(value) else value


if __name__ == "__main__":
    main()

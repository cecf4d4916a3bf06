"""Place split with real kernels: the same tokens as one stream, whatever it is combined with, or it is refused;
account and ledger give every nanosecond to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ridgeline.engine.build import build, rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.streams import StreamsEngine
from ridgeline.kit.clock import VirtualClock
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.account import Account
from ridgeline.perf.ledger import make_ledger, step_ledger
from ridgeline.run.cost_runner import batch_shape
from ridgeline.run.split_costs import Curve, Other, SplitCosts
from ridgeline.state.plan import Entry, StepPlan
from ridgeline.state.request import Request, Sampling

from ..perf.conftest import round_machine
from .tiny import GEMMA3, LLAMA, QWEN2, TinyEngine, write_config

SAMPLED = Sampling(temperature=0.9, seed=11, top_k=40)
LENGTHS = (130, 5, 257, 64, 17, 200, 1, 33)
ARRIVALS = (0, 2, 0, 5, 1, 3, 4, 9)


def prompt_of(length: int, salt: int) -> tuple[int, ...]:
    return tuple((7919 * (i + 1) * (salt + 3) + 31 * i * i) % 300 + 3 for i in range(length))


def requests(output: int = 6) -> list[Request]:
    shared = prompt_of(80, 1)
    return [
        Request(
            f"r{n}", (shared + prompt_of(length, n))[: max(length, 80)] if n % 3 == 0 else prompt_of(length, n), output,
            SAMPLED if n % 4 == 3 else Sampling(), ignore_stop=True,
        )
        for n, length in enumerate(LENGTHS)
    ]  # fmt: skip


def answers(model: str, **options: Any) -> dict[str, tuple[int, ...]]:
    shape = {"weights": "q4_1", "chunk": 29, "step_tokens": 61, "context": 272, "max_sequences": 8}
    engine = TinyEngine(model, **(shape | options))
    try:
        return engine.run(requests(), ARRIVALS)
    finally:
        engine.engine.close()


BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 2  # keys and values, layers, heads, dim, tokens, bytes
COMBINED: dict[str, dict[str, Any]] = {
    "plainly": {}, "fcfs": {"place": "split:policy=fcfs"}, "fair": {"policy": "fair"}, "int8": {"kv": "int8"},
    "int4": {"kv": "int4"}, "alone": {"prefix": False}, "ngram": {"spec": "ngram:k=4"},
    "evicting": {"kv_bytes": 20 * BLOCK_BYTES},
    "unequal": {"threads": 3, "place": "split:share=0.7"},
    "tiers": {"kv_bytes": 20 * BLOCK_BYTES, "host_kv_bytes": 1 << 20}, "h2o": {"keep": "h2o:32+window:32"},
    "window": {"keep": "sinks:4+window:64"},
}  # fmt: skip


@pytest.mark.parametrize("name", COMBINED)
def test_the_same_tokens_as_one_stream(tmp_path, name: str) -> None:
    options = {"place": "split"} | COMBINED[name]
    model = write_config(tmp_path, QWEN2)
    kept = {key: value for key, value in options.items() if key in ("kv", "keep", "prefix")}
    assert answers(model, **options) == answers(model, **kept)


def test_the_same_tokens_with_windows_of_the_model(tmp_path) -> None:
    model = write_config(tmp_path, GEMMA3)
    assert answers(model, place="split") == answers(model)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": False}, "leave paging, cache"), ({"batching": "static"}, "leave paging, cache"),
        ({"body": "torch"}, "native bodies"), ({"threads": 1}, "--threads 2"), ({"place": "split:share=2"}, "from 0"),
        ({"place": "split:beta=x"}, "place split"), ({"place": "split:width=3"}, "no option width"),
        ({"place": "split:policy=fair"}, "known: remaining, fcfs"),
        ({"spec": "draft:model=random:llama"}, "one program"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        EngineConfig(**({"model": "random:llama", "place": "split"} | options)).check()


def test_a_policy_that_was_asked_for_stands() -> None:
    assert EngineConfig(model="m", place="split").order == "remaining"
    assert EngineConfig(model="m", place="split", policy="fair").order == "fair"
    assert EngineConfig(model="m", place="split:policy=fcfs").order == EngineConfig(model="m").order == "fcfs"


def test_the_ledger_gives_every_nanosecond_to_one(tmp_path) -> None:
    config = EngineConfig(
        model=write_config(tmp_path, LLAMA), weights="q4_1", threads=2, kv_bytes=1 << 22, place="split", chunk=29,
        step_tokens=61, context=272, max_sequences=8,
    )  # fmt: skip
    observers: list[Account] = []

    def observe(parts: Any) -> Account:
        observers.append(Account(parts.program.reaches, tuple(line.part for line in parts.program)))
        return observers[0]

    engine = build(config, observe)
    assert isinstance(engine, StreamsEngine)
    for request in requests(12):
        engine.add(request)
    while engine.has_work:
        engine.step()
    engine.close()
    table = observers[0].table()
    assert (table.step_shares() < 1).any() and len(table.step_shares()) == len(table.step_times())
    assert 0.0 < table.unshared_s <= table.host_s
    ledger = make_ledger(table)
    assert len(ledger.requests) == len(LENGTHS) and not ledger.partial
    assert all(sum(one.wall_ns.values()) == one.e2e_ns for one in ledger.requests)
    assert all("prefill" in one.wall_ns or "decode" in one.wall_ns for one in ledger.requests)
    assert ledger.operators_ns + ledger.gaps_ns + ledger.host_ns == ledger.step_ns
    assert ledger.step_ns + ledger.idle_ns == ledger.engine_ns
    assert sum(sum(one.cost_ns.values()) for one in ledger.requests) == ledger.step_ns
    steps = step_ledger(table, table.timeline)
    assert min(int(np.min(one)) for one in (steps.operators, steps.gaps, steps.host, steps.idle)) >= 0


# -- predicted


def plan(*entries: tuple[int, int]) -> StepPlan:
    return StepPlan(tuple(Entry(n, start, (0,) * count, ()) for n, (start, count) in enumerate(entries)))


def costs(tmp_path, **curves: Curve) -> SplitCosts:
    program = record(describe(write_config(tmp_path, LLAMA)), STORAGES.get("bf16"))
    return SplitCosts(program, lambda: round_machine(1e9, 1e10), **curves)


def test_more_of_the_machine_never_takes_longer(tmp_path) -> None:
    found = costs(tmp_path, compute=Curve(0.4, 0.6), memory=Curve(0.3, 0.9))
    for work in (plan((0, 64)), plan(*[(100, 1)] * 4)):
        alone = [found.under(work, share / 10) for share in range(1, 11)]
        assert alone == sorted(alone, reverse=True)
        beside = [found.under(work, share / 10, Other(plan((64, 64)), 1 - share / 10)) for share in range(1, 10)]
        assert all(slow >= quick for slow, quick in zip(beside, alone, strict=False))
    assert found.under(plan((0, 64)), 1.0) == pytest.approx(
        float(found.estimator.step_seconds(batch_shape(plan((0, 64)))))
    )


def test_a_rehearsal_shares_the_machine_out(tmp_path) -> None:
    config = EngineConfig(
        model=write_config(tmp_path, LLAMA), threads=2, kv_bytes=1 << 22, place="split", chunk=29, step_tokens=61,
        context=272, max_sequences=8,
    )  # fmt: skip
    clock, observer = VirtualClock(), Account()
    engine = rehearse(config, round_machine(1e9, 1e10), clock, observer=observer)
    for request in requests():
        engine.add(request)
    while engine.has_work:
        engine.step()
    table = observer.table()
    assert (table.step_shares() == 0.5).any() and (table.step_shares() == 1.0).any()
    assert float(table.step_seconds().sum()) <= clock.now()

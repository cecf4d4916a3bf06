"""Ways of making steps are changed while an engine runs, at any moment, two streams and attention in turns among them:
no token changes, no block is lost, and the account still gives every nanosecond to one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.streams import StreamsEngine
from ridgeline.perf.account import Account
from ridgeline.perf.ledger import make_ledger
from ridgeline.state.request import Request, Sampling

from ..perf.conftest import round_machine
from .tiny import MAMBA2, QWEN2, TinyEngine, write_config

SHAPE: dict[str, Any] = {
    "weights": "q4_1",
    "chunk": 29,
    "step_tokens": 61,
    "context": 272,
    "max_sequences": 6,
    "prefix": False,
}
WAYS = ("chunked:tbt=1000000ms", "chunked", "serial", "split", "corun")


def requests(mark: str) -> list[Request]:
    return [
        Request(
            f"{mark}{n}", tuple((7919 * (i + 1) * (n + 3) + 31 * i * i) % 300 + 3 for i in range(length)), 12,
            Sampling(temperature=0.9, seed=11) if n == 2 else Sampling(), ignore_stop=True,
        )
        for n, length in enumerate((130, 5, 200, 64, 17, 1))
    ]  # fmt: skip


ARRIVALS = (0, 0, 3, 5, 9, 14)


class Switched:
    """An engine that chooses, with a way forced on it before some of its steps."""

    def __init__(self, model: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        monkeypatch.setattr("ridgeline.engine.build.load_or_measure", lambda threads: round_machine(1e9, 1e10))
        self.tiny = TinyEngine(model, **(SHAPE | {"place": "auto:tbt=1000s,ttft=1000s"} | options))
        engine, self.forced, self.count = self.tiny.engine, iter(()), itertools.count()
        assert isinstance(engine, StreamsEngine) and engine.chooser is not None
        self.chooser = engine.chooser
        assert tuple(way.name for way in self.chooser.ways) == WAYS
        self.chooser.review = lambda now: None  # type: ignore[method-assign]
        step = engine.step

        def forced_step() -> Any:
            way = next(self.forced, None)
            if way is not None and way != self.chooser.ways.index(self.chooser.way):
                self.chooser.switch(self.chooser.ways[way], engine.clock.now(), "asked for")
            return step()

        engine.step = forced_step  # type: ignore[method-assign]

    def run(self, forced: Iterator[int | None]) -> list[tuple[int, ...]]:
        self.forced = forced
        return list(self.tiny.run(requests(f"s{next(self.count)}-"), ARRIVALS).values())


@pytest.fixture(scope="module", params=["bf16", "int8"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model = write_config(tmp_path_factory.mktemp("switching"), QWEN2)
    plain = TinyEngine(model, **SHAPE, kv=request.param)
    expected = list(plain.run(requests("p"), ARRIVALS).values())
    plain.engine.close()
    with pytest.MonkeyPatch.context() as patch:
        switched = Switched(model, patch, kv=request.param)
    yield switched, expected
    switched.tiny.engine.close()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from((None, None, 0, 1, 2, 3, 4)), max_size=60))
def test_switching_at_any_moment_changes_no_token(pair: Any, forced: list[int | None]) -> None:
    switched, expected = pair
    assert switched.run(iter(forced)) == expected
    free, held, _ = switched.tiny.engine.scheduler.memory.occupancy()
    assert held == 0 and free > 0


def test_two_streams_end_whole_before_all_are_one(pair: Any) -> None:
    """To and from two streams at every step: steps overlapped, and none of one stream ran beside another."""
    switched, expected = pair
    engine, shares = switched.tiny.engine, []
    lanes, start = engine.lanes, engine.lanes.start
    engine.lanes.start = lambda lane, plan, share: (shares.append((lane, share)), start(lane, plan, share))[1]
    assert switched.run(itertools.cycle((3, None, None, None, None, 1, None, None))) == expected
    assert engine.lanes is lanes and {"all", "many", "one"} == {lane for lane, _ in shares}
    assert {share for lane, share in shares if lane == "all"} == {1.0} and 0.5 in {share for _, share in shares}
    del engine.lanes.start
    told = switched.chooser.report()
    assert told["switches"] >= len(told["log"]) > 4
    assert {one["after"] for one in told["log"]} >= {"split", "chunked"}
    assert sum(one["seen"]["gaps"] for one in told["log"]) > 0


def test_the_ledger_stays_exact(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ridgeline.engine.build.load_or_measure", lambda threads: round_machine(1e9, 1e10))
    observers: list[Account] = []

    def observe(parts: Any) -> Account:
        observers.append(Account(parts.program.reaches, tuple(line.part for line in parts.program)))
        return observers[0]

    config = EngineConfig(
        write_config(tmp_path, QWEN2), threads=2, kv_bytes=1 << 22, place="auto:tbt=1000s,ttft=1000s", **SHAPE
    )
    engine = build(config, observe)
    assert engine.chooser is not None
    for request in requests("r"):
        engine.add(request)
    for step in itertools.count():
        if not engine.has_work:
            break
        if step % 4 == 0:
            engine.chooser.use(engine.chooser.ways[step // 4 % len(WAYS)])
        engine.step()
    engine.close()
    ledger = make_ledger(observers[0].table())
    assert len(ledger.requests) == len(ARRIVALS) and not ledger.partial
    assert all(sum(one.wall_ns.values()) == one.e2e_ns for one in ledger.requests)
    assert ledger.operators_ns + ledger.gaps_ns + ledger.host_ns == ledger.step_ns
    assert sum(sum(one.cost_ns.values()) for one in ledger.requests) == ledger.step_ns


def test_what_cannot_overlap_is_no_way(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ridgeline.engine.build.load_or_measure", lambda threads: round_machine(1e9, 1e10))
    for options, shape in ({"threads": 1}, QWEN2), ({"threads": 2}, MAMBA2):
        engine = TinyEngine(write_config(tmp_path, shape), place="auto", weights="q4_1", **options).engine
        assert engine.chooser is not None and not isinstance(engine, StreamsEngine)
        assert [way.name for way in engine.chooser.ways][3:] == ["corun"]
        engine.close()
    config = EngineConfig("m", place="auto", reference=("attend",), threads=2)
    config.check()
    assert not config.has_native_attention and "native bodies" in config.one_stream

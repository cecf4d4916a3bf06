"""Real processes: the same tokens, also when an engine is killed in the middle; nobody waits for ever."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ridgeline.cluster.build import connect
from ridgeline.cluster.cluster import Cluster
from ridgeline.engine.client import EngineStopped
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

from ..engine.tiny import LLAMA, write_config
from .test_exchange import alone, prompt_of

OPTIONS: dict[str, Any] = {"kv_bytes": 1 << 22, "chunk": 16, "threads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("model"), LLAMA | {"tie_word_embeddings": False})


@pytest.fixture(scope="module")
def shared(model: str) -> Iterator[Cluster]:
    cluster = started(model)
    yield cluster
    cluster.close()


def started(model: str, place: str = "disaggregated:restarts=1", **options: Any) -> Cluster:
    cluster = connect(EngineConfig(model=model, place=place, **(OPTIONS | options)))
    assert isinstance(cluster, Cluster)
    return cluster


class Answers:
    """Everything that was delivered, request by request, in order."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._inbox: queue.SimpleQueue[tuple[str, TokenEvent | RidgelineError]] = queue.SimpleQueue()
        self.tokens: dict[str, tuple[int, ...]] = {}
        self.ends: dict[str, str | RidgelineError] = {}

    def ask(self, request: Request) -> None:
        self.tokens[request.id] = ()
        self._cluster.submit_to(request, lambda event: self._inbox.put((request.id, event)))

    def until(self, is_there: Callable[[], bool], limit_s: float = 60.0) -> None:
        end = time.monotonic() + limit_s
        while not is_there():
            name, event = self._inbox.get(timeout=max(0.01, end - time.monotonic()))
            if isinstance(event, RidgelineError):
                self.ends[name] = event
                continue
            assert name not in self.ends, "an event after the last"
            assert event.request == name
            self.tokens[name] += event.tokens
            if event.finish is not None:
                self.ends[name] = event.finish

    def all(self) -> dict[str, tuple[int, ...]]:
        self.until(lambda: len(self.ends) == len(self.tokens))
        return self.tokens


def asked(count: int = 6, output: int = 60) -> list[Request]:
    return [Request(f"q{n}", prompt_of(30 + 40 * n, n), output, ignore_stop=True) for n in range(count)]


def is_idle(cluster: Cluster) -> bool:
    """No block is held in any engine, once each has heard of the end: on a loaded machine a little after the caller."""

    def holds_nothing() -> bool:
        reports = [table["memory"] for table in cluster.account().values()]
        return all(report.get("held blocks", 0) == 0 for report in reports)

    return comes_true(holds_nothing)


def comes_true(is_so: Callable[[], bool], limit_s: float = 30.0) -> bool:
    end = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_two_processes_make_the_tokens_of_one(shared: Cluster, model: str) -> None:
    requests = asked()
    answers = Answers(shared)
    for request in requests:
        answers.ask(request)
    assert answers.all() == alone(model, requests)
    assert set(answers.ends.values()) == {"length"} and is_idle(shared)


@pytest.mark.parametrize("place", ["engines=2+1", "engines=1+2,link=tcp,route=round"])
def test_several_engines_of_a_kind_share_the_requests(model: str, place: str) -> None:
    """Every engine is linked with every one of the other kind and gets its share; one of two that dies for good leaves
    its requests to the other."""
    requests = asked(6, output=200)
    cluster = started(model, f"disaggregated:{place},restarts=0")
    answers = Answers(cluster)
    try:
        pairs = {(f"prefill-{a}", f"decode-{b}") for a, b in ((0, 0), (1, 0) if "2+1" in place else (0, 1))}
        assert set(cluster.links()) == pairs and len(cluster.pids) == 3
        for request in requests:
            answers.ask(request)
        answers.until(lambda: sum(map(len, answers.tokens.values())) > 20)
        names = {at for one in cluster._journeys.values() for at in (one.prefill, one.decode)}
        assert {name for pair in pairs for name in pair} == names
        os.kill(cluster.pids["prefill-1" if "2+1" in place else "decode-1"], signal.SIGKILL)
        answers.all()
        assert set(answers.ends.values()) == {"length"}
        assert answers.tokens == alone(model, requests) and is_idle(cluster)
        assert comes_true(lambda: len(cluster.pids) == 2) and cluster.failure is None
    finally:
        cluster.close()


def test_cancelling_ends_a_request_wherever_it_is(shared: Cluster) -> None:
    answers = Answers(shared)
    for number, request in enumerate(asked(output=700)):
        answers.ask(request)
        if number % 2:
            answers.until(lambda name=request.id: len(answers.tokens[name]) > 2)  # type: ignore[misc]
        shared.cancel(request.id)
    answers.all()
    assert set(answers.ends.values()) == {"cancelled"}


def test_what_no_engine_would_take_is_refused_at_once(shared: Cluster) -> None:
    with pytest.raises(UserError, match="is empty"):
        shared.submit_to(Request("empty", (), 5), lambda event: None)
    with pytest.raises(UserError, match="leaves room"):
        shared.submit_to(Request("long", prompt_of(5000), 5), lambda event: None)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_a_killed_engine_loses_no_request(model: str, kind: str) -> None:
    requests = asked(8, output=300)
    cluster = started(model)
    answers = Answers(cluster)
    try:
        for request in requests:
            answers.ask(request)
        answers.until(lambda: sum(map(len, answers.tokens.values())) > (20 if kind == "decode" else 1))
        os.kill(cluster.pids[f"{kind}-0"], signal.SIGKILL)
        assert answers.all() == alone(model, requests)
        assert set(answers.ends.values()) == {"length"} and is_idle(cluster)
        assert cluster.links()["prefill-0", "decode-0"] >= 2
    finally:
        cluster.close()


def test_when_none_is_left_requests_end_with_a_clear_error(model: str) -> None:
    cluster = started(model, "disaggregated:restarts=0")
    answers = Answers(cluster)
    try:
        for request in asked(3, output=800):
            answers.ask(request)
        answers.until(lambda: bool(answers.tokens["q0"]))
        os.kill(cluster.pids["decode-0"], signal.SIGKILL)
        answers.all()
        assert {type(end) for end in answers.ends.values()} == {EngineStopped}
        assert "no decode engine is left" in str(answers.ends["q0"])
        late = Answers(cluster)
        late.ask(asked(1)[0])
        late.all()
        assert isinstance(late.ends["q0"], EngineStopped)
    finally:
        cluster.close()

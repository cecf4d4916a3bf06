"""EngineClient with real processes: answers, errors with their kind, and never a hang."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ridgeline.engine.client import EngineClient, EngineStopped
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.state.request import Request

from .scripted import CONTEXT, alone

WORKER = (sys.executable, str(Path(__file__).with_name("scripted_worker.py")))
LIMIT_S = 20.0


def client_of(model: str = "scripted") -> EngineClient:
    return EngineClient(EngineConfig(model=model), command=WORKER)


@pytest.fixture(scope="module")
def client() -> Iterator[EngineClient]:
    with client_of() as client:
        yield client


def test_requests_run_together_and_each_stream_has_its_own_tokens(client: EngineClient) -> None:
    requests = [Request(f"r{n}", tuple(range(1, n + 2)), 10 + n) for n in range(12)]
    streams = [client.submit(request) for request in requests]
    for request, stream in zip(requests, streams, strict=True):
        events = list(stream)
        assert tuple(token for event in events for token in event.tokens) == alone(request)[0]
        assert events[-1].finish == "length" and stream.arrival_s > 0
        assert list(stream) == []  # ended stays ended


def test_facts_say_what_runs(client: EngineClient) -> None:
    assert client.facts.name == "scripted" and client.facts.context == CONTEXT


def test_wrong_requests_are_refused_where_they_are_made(client: EngineClient) -> None:
    with pytest.raises(UserError, match="empty"):
        client.submit(Request("a", (), 3))
    stream = client.submit(Request("twice", (1,), 200))
    with pytest.raises(UserError, match="already in use"):
        client.submit(Request("twice", (1,), 3))
    stream.cancel()
    assert list(stream)[-1].finish in ("cancelled", "length")
    client.cancel("twice")  # ended: nothing happens
    assert len(list(client.submit(Request("twice", (1,), 3)))) == 3


def test_the_account_comes_typed_and_can_start_anew(client: EngineClient) -> None:
    list(client.submit(Request("counted", (1,), 4)))
    assert client.account(reset=True)["steps"] >= 4
    assert client.account(dict[str, int]) == {"steps": 0, "finished": 0}


def test_many_threads_may_submit(client: EngineClient) -> None:
    answers: dict[str, tuple[int, ...]] = {}

    def ask(number: int) -> None:
        request = Request(f"t{number}", (number + 1, 2), 15)
        answers[request.id] = tuple(t for event in client.submit(request) for t in event.tokens)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert answers == {f"t{n}": alone(Request("", (n + 1, 2), 15))[0] for n in range(16)}


def test_a_killed_engine_is_an_error_for_everybody_not_a_hang() -> None:
    client = client_of("scripted:slow")
    streams = [client.submit(Request(f"r{n}", (1, 2), 200)) for n in range(3)]
    streams[0].next(LIMIT_S)
    os.kill(client.pid, signal.SIGKILL)
    for stream in streams:
        with pytest.raises(EngineStopped, match="killed by signal 9"):
            while True:
                stream.next(LIMIT_S)
    with pytest.raises(EngineStopped):
        client.submit(Request("late", (1,), 1))
    with pytest.raises(EngineStopped):
        client.account()
    client.close()
    client.close()


def test_a_failing_step_reaches_the_requests_with_its_reason() -> None:
    with client_of("scripted:fails-at-step") as client:
        stream = client.submit(Request("a", (1, 2), 5))
        with pytest.raises(EngineStopped, match="the kernel fell over"):
            stream.next(LIMIT_S)


def test_what_keeps_an_engine_from_starting_is_raised_with_its_kind() -> None:
    with pytest.raises(CapacityError, match="3 GiB short"):
        client_of("scripted:fails-at-start")
    with pytest.raises(EngineStopped, match="exit code 5 while it was starting"):
        client_of("scripted:silent-exit")
    with pytest.raises(UserError, match="max_sequences"):
        EngineClient(EngineConfig(model="scripted", max_sequences=0), command=WORKER)


def test_closing_gives_open_requests_an_error_and_leaves_no_process() -> None:
    client = client_of("scripted:slow")
    stream = client.submit(Request("a", (1, 2), 200))
    stream.next(LIMIT_S)
    client.close()
    with pytest.raises(EngineStopped, match="closed"):
        while True:
            stream.next(LIMIT_S)
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)


def test_ctrl_c_is_the_parents_business() -> None:
    with client_of("scripted:slow") as client:
        stream = client.submit(Request("a", (1, 2), 10))
        stream.next(LIMIT_S)
        os.kill(client.pid, signal.SIGINT)
        assert list(stream)[-1].finish == "length"


def test_a_stopped_engine_is_killed_after_the_timeout() -> None:
    client = client_of()
    os.kill(client.pid, signal.SIGSTOP)
    before = time.monotonic()
    client.close(timeout_s=0.3)
    assert time.monotonic() - before < 5


def test_events_can_be_delivered_to_a_function() -> None:
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    with client_of() as client:
        client.submit_to(Request("a", (1,), 1), events.put)
        assert events.get(timeout=LIMIT_S).tokens == alone(Request("a", (1,), 1))[0]  # type: ignore[attr-defined]


def test_the_real_worker_refuses_an_unknown_model() -> None:
    with pytest.raises(UserError, match="unknown model 'no-such-model'"):
        EngineClient(EngineConfig(model="no-such-model"))


def test_the_real_worker_ends_on_sigterm(tmp_path: Path) -> None:
    from .tiny import LLAMA, write_config

    config = EngineConfig(model=write_config(tmp_path, LLAMA), threads=1, kv_bytes=1 << 22)
    client = EngineClient(config)
    assert len(list(client.submit(Request("a", (5, 6, 7), 4)))) == 4
    assert client.facts.is_random and client.facts.resident_weight_bytes > 0
    os.kill(client.pid, signal.SIGTERM)
    assert client._process.wait(LIMIT_S) == 0
    client.close()

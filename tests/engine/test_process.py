"""serve() over a real socket, in a thread: one bad request is its own answer; a broken engine says so and ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.engine.frames import Closed, Frames
from ridgeline.engine.process import serve
from ridgeline.kit.errors import UserError
from ridgeline.state.messages import (
    AccountReply,
    Add,
    Cancel,
    Failed,
    FromEngine,
    GetAccount,
    Ready,
    Shutdown,
    Start,
    Tokens,
)
from ridgeline.state.request import Request

from .scripted import alone, scripted_engine

START = Start(msgspec.Raw(msgspec.msgpack.encode(EngineConfig(model="scripted"))))


class Served:
    """serve() in a thread, and our end of the socket."""

    def __init__(self, make_engine: Callable[[EngineConfig], Engine]) -> None:
        near, far = socket.socketpair()
        self.frames = Frames[FromEngine](near, FromEngine)
        self.codes: list[int] = []
        self.thread = threading.Thread(target=lambda: self.codes.append(serve(far, make_engine)))
        self.thread.start()

    def ended(self) -> int:
        self.thread.join(5)
        assert not self.thread.is_alive()
        return self.codes[0]

    def until_finished(self) -> list[Any]:
        events: list[Any] = []
        while not (events and events[-1].finish):
            message = self.frames.receive()
            assert isinstance(message, Tokens)
            events += message.events
        return events


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served(lambda config: scripted_engine())
    served.frames.send(START)
    assert isinstance(served.frames.receive(), Ready)
    yield served
    served.frames.close()
    served.ended()


def test_a_request_is_answered_and_shutdown_ends(served: Served) -> None:
    request = Request("a", (1, 2, 3), 20)
    served.frames.send(Add(request))
    events = served.until_finished()
    assert tuple(token for event in events for token in event.tokens) == alone(request)[0]
    served.frames.send(Shutdown())
    assert served.ended() == 0


def test_one_bad_request_does_not_disturb_the_others(served: Served) -> None:
    served.frames.send(Add(Request("bad", (), 5)))
    failed = served.frames.receive()
    assert isinstance(failed, Failed) and failed.request == "bad" and failed.kind == "user" and "empty" in failed.text
    served.frames.send(Add(Request("good", (1,), 2)))
    assert served.until_finished()[-1].request == "good"


def test_cancel_and_account(served: Served) -> None:
    served.frames.send(Add(Request("a", (1, 2, 3), 200)))
    served.frames.send(Cancel("a"))
    served.frames.send(Cancel("nobody"))
    assert served.until_finished()[-1].finish == "cancelled"
    served.frames.send(GetAccount())
    reply = served.frames.receive()
    assert isinstance(reply, AccountReply) and msgspec.msgpack.decode(reply.account) == {}


def test_an_idle_engine_uses_no_processor(served: Served) -> None:
    served.frames.send(Add(Request("a", (1,), 2)))
    served.until_finished()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_a_client_that_goes_away_ends_the_engine() -> None:
    served = Served(lambda config: scripted_engine())
    served.frames.send(START)
    served.frames.receive()
    served.frames.send(Add(Request("a", (1,), 200)))
    served.frames.close()
    assert served.ended() == 0


def test_an_engine_that_cannot_start_says_why() -> None:
    def refuse(config: EngineConfig) -> Engine:
        raise UserError(f"unknown model {config.model!r}.")

    served = Served(refuse)
    served.frames.send(START)
    assert served.frames.receive() == Failed("user", "unknown model 'scripted'.")
    assert served.ended() == 2
    served.frames.close()


def test_a_broken_step_is_reported_before_the_end() -> None:
    engine = scripted_engine()
    closed: list[bool] = []
    engine._close = lambda: closed.append(True)
    engine.runner.submit = lambda plan: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    served = Served(lambda config: engine)
    served.frames.send(START)
    served.frames.receive()
    served.frames.send(Add(Request("a", (1,), 2)))
    failed = served.frames.receive()
    assert isinstance(failed, Failed) and failed.request is None
    assert failed.kind == "internal" and "ZeroDivisionError" in failed.text
    assert served.ended() == 70 and closed == [True]
    with pytest.raises(Closed):
        served.frames.receive()
    served.frames.close()


def test_a_message_out_of_turn_is_refused() -> None:
    served = Served(lambda config: scripted_engine())
    served.frames.send(Shutdown())
    failed = served.frames.receive()
    assert isinstance(failed, Failed) and failed.kind == "invariant"
    assert served.ended() == 70
    served.frames.close()

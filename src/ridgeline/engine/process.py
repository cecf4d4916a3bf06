"""The engine's side of its process: reads messages, steps while there is work, sends what came out.

Sleeps without CPU when idle. What is wrong with one request is that request's answer; what is wrong with the engine
is reported before it ends. Called by ridgeline/worker.py.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import traceback
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from ridgeline.kit.errors import CapacityError, InvariantError, RidgelineError, UserError
from ridgeline.kit.give_back import give_back
from ridgeline.state.event import TokenEvent
from ridgeline.state.messages import (
    AccountReply,
    Add,
    Cancel,
    ErrorKind,
    Failed,
    GetAccount,
    GetPulse,
    Migrate,
    Ready,
    Shutdown,
    Start,
    ToEngine,
    Tokens,
)

from .compiling import Compiling
from .config import EngineConfig
from .engine import Engine
from .frames import Closed, Frames

EXIT_CODES: dict[ErrorKind, int] = {"user": 2, "capacity": 2, "invariant": 70, "internal": 70}


class Exchange(Protocol):
    """Carries sequences between this engine and others (cluster.exchange.Exchange). `number`: a file descriptor that is
    readable when turn has something to do."""

    number: int

    def send_on(self, request_id: str, to: str) -> None:
        """This request was added and hands on: to whom."""
        ...

    def migrate(self, request_id: str, to: str) -> TokenEvent | None:
        """One that runs here is to go on elsewhere: STAYED when that cannot even begin."""
        ...

    def cancel(self, request_id: str) -> TokenEvent | None:
        """End one that has left the engine and did not arrive yet; None: there is none."""
        ...

    def turn(self) -> list[TokenEvent]:
        """Between two steps: give and take what there is. What there is to tell."""
        ...

    def report(self) -> dict[str, int]:
        """Bytes of kept state since the start."""
        ...

    def close(self) -> None: ...


def serve(
    connection: socket.socket, make_engine: Callable[[EngineConfig], Engine],
    make_exchange: Callable[[Engine], Exchange] | None = None,
) -> int:  # fmt: skip
    """Start, serve until Shutdown or until the client goes away; returns the process's exit code."""
    frames: Frames[ToEngine] = Frames(connection, ToEngine)
    engine: Engine | None = None
    exchange: Exchange | None = None
    compiling: Compiling | None = None
    try:
        start = frames.receive()
        if not isinstance(start, Start):
            raise InvariantError("the first message to an engine must be Start")
        engine = make_engine(msgspec.msgpack.decode(start.config, type=EngineConfig))
        gc.collect()
        gc.freeze()  # the model's objects stay until the end: no collection needs to walk them again
        if make_exchange is not None:
            exchange = make_exchange(engine)
            frames.watch(exchange.number)
        if engine.rules is not None:
            compiling = Compiling(engine.rules)
            frames.watch(compiling.number)
        frames.send(Ready(engine.facts))
        _run(frames, engine, exchange, compiling)
        return 0
    except Closed:
        return 0
    except Exception as error:
        return _report(frames, error)
    finally:
        if compiling is not None:
            compiling.close()
        if exchange is not None:
            exchange.close()
        if engine is not None:
            engine.close()
        frames.close()


def _run(frames: Frames[ToEngine], engine: Engine, exchange: Exchange | None, compiling: Compiling | None) -> None:
    while True:
        for added, error in compiling.turn() if compiling is not None else ():
            _add(frames, engine, exchange, added, error)
        if exchange is not None and (told := exchange.turn()):  # before a wait: the last step may have left something
            frames.send(Tokens(tuple(told)))
            engine.is_stuck = False
        message = frames.receive(wait=not engine.has_work or engine.is_stuck)
        while message is not None:
            if isinstance(message, Shutdown):
                return
            if isinstance(message, Add) and compiling is not None and compiling.wants(message):
                compiling.begin(message)
            elif isinstance(message, Cancel) and compiling is not None and compiling.cancel(message.request):
                frames.send(Tokens((TokenEvent(message.request, (), engine.clock.now(), finish="cancelled"),)))
            else:
                _take(frames, engine, exchange, message)
            message = frames.receive(wait=False)
        if engine.has_work:
            events = engine.step()
            if events:
                frames.send(Tokens(tuple(events)))


def _take(frames: Frames[ToEngine], engine: Engine, exchange: Exchange | None, message: ToEngine) -> None:
    match message:
        case Add():
            _add(frames, engine, exchange, message)
        case Migrate(request_id, to):
            if exchange is not None and (told := exchange.migrate(request_id, to)) is not None:
                frames.send(Tokens((told,)))
        case Cancel(request_id):
            event = engine.cancel(request_id) or (exchange.cancel(request_id) if exchange is not None else None)
            if event is not None:
                frames.send(Tokens((event,)))
        case GetAccount(reset, turn):
            links = {} if exchange is None else {"links": exchange.report()}
            frames.send(AccountReply(msgspec.Raw(msgspec.msgpack.encode(_account(engine, links, reset, turn)))))
            if turn:
                give_back()
        case GetPulse():
            frames.send(engine.pulse())
        case Start() | Shutdown():
            raise InvariantError("an engine starts once and ends once")


def _add(
    frames: Frames[ToEngine], engine: Engine, exchange: Exchange | None, message: Add, error: Exception | None = None
) -> None:
    """error: why it cannot be added."""
    request, to = message.request, message.to
    try:
        if error is not None:
            raise error
        if to and exchange is None:
            raise InvariantError(f"request {request.id!r} is to go to {to}, and there is no way to anywhere")
        engine.add(request, known=message.known, hands_on=bool(to))
        if to and exchange is not None:
            exchange.send_on(request.id, to)
    except UserError as refusal:
        frames.send(Failed(kind_of(refusal), str(refusal), request.id))


def _account(engine: Engine, links: Mapping[str, object], reset: bool, turn: bool) -> object:
    """links: what its exchange reports."""
    observer = engine.observer
    table, forget = getattr(observer, "table", None), getattr(observer, "reset", None)
    if table is None or forget is None:
        return {}
    account: object = table()
    if isinstance(account, msgspec.Struct) and hasattr(account, "memory"):
        account = msgspec.structs.replace(account, memory={**engine.scheduler.memory.report(), **links})
        if engine.chooser is not None and hasattr(account, "choices"):
            account = msgspec.structs.replace(account, choices=engine.chooser.report())
    if reset:
        forget()
    elif turn and (turn_page := getattr(observer, "turn", None)) is not None:
        turn_page()
    return account


def _report(frames: Frames[ToEngine], error: Exception) -> int:
    kind = kind_of(error)
    text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    with contextlib.suppress(Closed):
        frames.send(Failed(kind, text))
    return EXIT_CODES[kind]


def kind_of(error: Exception) -> ErrorKind:
    """The word an error travels under; client.error_of is the way back."""
    if isinstance(error, CapacityError):
        return "capacity"
    if isinstance(error, UserError):
        return "user"
    return "invariant" if isinstance(error, RidgelineError) else "internal"

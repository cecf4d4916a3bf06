"""EngineClient: an engine in its own process, seen from outside. Starts it, submits, cancels, ends it.

One reader thread hands events to their requests. An engine that dies gives every waiting request an error that says
so; nobody waits for ever. Thread-safe.
"""

# size: 20 short methods; one owner of the process, its socket and who waits, under one lock

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self, TypeVar, overload

import msgspec

from ridgeline.kit.errors import CapacityError, InvariantError, RidgelineError, UserError
from ridgeline.state.event import STAYED, TokenEvent
from ridgeline.state.messages import (
    AccountReply,
    Add,
    Cancel,
    EngineFacts,
    ErrorKind,
    Failed,
    FromEngine,
    GetAccount,
    GetPulse,
    Migrate,
    Pulse,
    Ready,
    Shutdown,
    Start,
    Tokens,
)
from ridgeline.state.request import Request

from .config import EngineConfig
from .frames import Closed, Frames

Deliver = Callable[[TokenEvent | RidgelineError], None]
Table = TypeVar("Table")


class EngineStopped(RidgelineError):
    """The engine process has ended, so what was asked of it will not come."""


class Stream:
    """The TokenEvents of one request, in order; iteration ends after the last (finish is set) or raises."""

    def __init__(self, request: Request, cancel: Callable[[str], None]) -> None:
        self.request = request
        self._events: queue.SimpleQueue[TokenEvent | RidgelineError] = queue.SimpleQueue()
        self._cancel = cancel
        self._is_done = False

    @property
    def arrival_s(self) -> float:
        """When the request was submitted, on the engine's clock (CLOCK_MONOTONIC, one for all processes)."""
        return self.request.arrival_s or 0.0

    def deliver(self, event: TokenEvent | RidgelineError) -> None:
        self._events.put(event)

    def next(self, timeout_s: float | None = None) -> TokenEvent:
        """The next event; queue.Empty after timeout_s; StopIteration is never raised, so do not call past the last."""
        event = self._events.get(timeout=timeout_s)
        if isinstance(event, RidgelineError):
            self._is_done = True
            raise event
        self._is_done = event.finish is not None
        return event

    def cancel(self) -> None:
        """Ask for an early end; a last event with finish "cancelled" comes unless it has ended already."""
        self._cancel(self.request.id)

    def __iter__(self) -> Iterator[TokenEvent]:
        while not self._is_done:
            yield self.next()


class Process(Protocol):
    """An engine's process, as subprocess.Popen shows it; on any machine."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int:
        """subprocess.TimeoutExpired when it has not ended."""
        ...

    def kill(self) -> None: ...


class EngineClient:
    """Starts the engine process and waits until it is ready; raises what kept it from it (UserError, CapacityError)."""

    def __init__(
        self, config: EngineConfig, *, command: tuple[str, ...] | None = None, door: socket.socket | None = None,
        joined: tuple[socket.socket, Process] | None = None,
        on_stop: Callable[[RidgelineError], None] = lambda error: None,
    ) -> None:  # fmt: skip
        """door: given to the process, for others to be introduced to it. joined: a process that somebody else started,
        and the connection to it. on_stop: told, from the reader thread, that it has ended."""
        config.check()
        self._on_stop = on_stop
        ours, self._process = joined or _start(command or (sys.executable, "-P", "-m", "ridgeline.worker"), door)
        self._frames: Frames[FromEngine] = Frames(ours, FromEngine)
        self._lock = threading.Lock()
        self._waiting: dict[str, Deliver] = {}
        self._accounts: queue.SimpleQueue[msgspec.Raw | RidgelineError] = queue.SimpleQueue()
        self._account_turn = threading.Lock()
        self._accounts_due = 0
        self._stopped: RidgelineError | None = None
        self.pulse: Pulse | None = None  # the engine's last sign of life
        try:
            self.facts: EngineFacts = self._ready(config)
        except BaseException:  # also Ctrl-C while a model loads
            self._end(timeout_s=0.0)
            raise
        self._reader = threading.Thread(target=self._read, name="ridgeline-engine-reader", daemon=True)
        self._reader.start()

    def submit(self, request: Request) -> Stream:
        """Hand a request over. UserError at once for what no engine would take; later errors come from the stream."""
        if request.arrival_s is None:
            request = msgspec.structs.replace(request, arrival_s=time.perf_counter())
        stream = Stream(request, self.cancel)
        self.submit_to(request, stream.deliver)
        return stream

    def submit_to(self, request: Request, deliver: Deliver, *, known: tuple[int, ...] = (), to: str = "") -> None:
        """As submit, but every event is given to `deliver`, called from the reader thread: it must not block.

        known, to: of Add."""
        request.check(self.facts.vocabulary, self.facts.context)
        self.expect(request.id, deliver)
        self._send(Add(request, known, to))

    def expect(self, request_id: str, deliver: Deliver) -> None:
        """Events of a request that this engine gets from another one."""
        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            if request_id in self._waiting:
                raise UserError(f"request id {request_id!r} is already in use; give every request its own id.")
            self._waiting[request_id] = deliver

    def forget(self, request_id: str) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            self._waiting.pop(request_id, None)

    def migrate(self, request_id: str, to: str) -> None:
        """Ask that a request go on in another engine: Migrate."""
        self._send(Migrate(request_id, to))

    def cancel(self, request_id: str) -> None:
        """Ask for an early end of a request; one that has ended already is left alone."""
        with self._lock:
            if request_id not in self._waiting:
                return
        self._send(Cancel(request_id))

    @overload
    def account(self, *, reset: bool = False, turn: bool = False, timeout_s: float = 60.0) -> dict[str, Any]: ...
    @overload
    def account(
        self, kind: type[Table], *, reset: bool = False, turn: bool = False, timeout_s: float = 60.0
    ) -> Table: ...
    def account(
        self, kind: Any = dict[str, Any], *, reset: bool = False, turn: bool = False, timeout_s: float = 60.0
    ) -> Any:  # fmt: skip
        """What the engine's observer saw so far, read as `kind`. reset: it starts anew after answering; turn: it starts
        a new page."""
        with self._account_turn:
            with self._lock:
                if self._stopped is not None:
                    raise self._stopped
            self._send(GetAccount(reset, turn))
            self._accounts_due += 1
            try:
                while self._accounts_due:  # an answer that came too late for who asked before is nobody's
                    answer = self._accounts.get(timeout=timeout_s)
                    self._accounts_due -= 1
                    if isinstance(answer, RidgelineError):
                        break
            except queue.Empty:
                raise EngineStopped(f"the engine gave no account within {timeout_s:.0f} s; it may be stuck.") from None
        if isinstance(answer, RidgelineError):
            raise answer
        return msgspec.msgpack.decode(answer, type=kind)

    def ask_pulse(self) -> None:
        """Ask for a sign of life; `pulse` changes when the engine's loop next turns."""
        self._send(GetPulse())

    @property
    def failure(self) -> RidgelineError | None:
        """Why the engine is gone; None while it is there."""
        return self._stopped

    @property
    def is_running(self) -> bool:
        """Whether the process is there: known sooner than what it leaves unsaid."""
        return self._stopped is None and self._process.poll() is None and not self._frames.has_ended

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self, timeout_s: float = 5.0) -> None:
        """End the engine: asks, then insists after timeout_s. Idempotent; open requests get an EngineStopped."""
        with self._lock:
            if self._stopped is None:
                self._stopped = EngineStopped("the engine was closed.")
        with contextlib.suppress(Closed):
            self._frames.send(Shutdown())
        self._end(timeout_s)
        if threading.current_thread() is not self._reader:
            self._reader.join(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside

    def _ready(self, config: EngineConfig) -> EngineFacts:
        try:
            self._frames.send(Start(msgspec.Raw(msgspec.msgpack.encode(config))))
            message = self._frames.receive()
        except Closed:
            raise self._death("while it was starting") from None
        if isinstance(message, Failed):
            raise error_of(message.kind, message.text)
        if not isinstance(message, Ready):
            raise InvariantError("the engine's first message must be Ready or Failed")
        return message.facts

    def _send(self, message: object) -> None:
        with contextlib.suppress(Closed):  # the reader thread sees it too and tells everybody why
            self._frames.send(message)

    def _read(self) -> None:
        """The reader thread: ends with the connection, and then tells whoever still waits."""
        failure: RidgelineError | None = None
        doing = "the engine sent something unreadable"
        try:
            while True:
                message = self._frames.receive()
                if isinstance(message, Failed) and message.request is None:
                    failure = error_of(message.kind, message.text)
                elif message is not None:
                    doing = "who waits for an event of the engine failed to take it"
                    self._dispatch(message)
                    doing = "the engine sent something unreadable"
        except Closed:
            pass
        except Exception as error:  # the connection is worth nothing any more: what comes next would be out of order
            failure = InvariantError(f"{doing}: {type(error).__name__}: {error}")
        with self._lock:
            if self._stopped is None:
                self._stopped = failure or self._death("while requests were waiting")
            stopped, waiting = self._stopped, list(self._waiting.values())
            self._waiting.clear()
        for deliver in waiting:
            deliver(stopped)
        self._accounts.put(stopped)
        self._on_stop(stopped)

    def _dispatch(self, message: FromEngine) -> None:
        if isinstance(message, Tokens):
            for event in message.events:
                deliver = self._taken(event.request, event.finish not in (None, STAYED))
                if deliver is not None:
                    deliver(event)
        elif isinstance(message, Failed) and message.request is not None:
            deliver = self._taken(message.request, True)
            if deliver is not None:
                deliver(error_of(message.kind, message.text))
        elif isinstance(message, AccountReply):
            self._accounts.put(message.account)
        elif isinstance(message, Pulse):
            self.pulse = message

    def _taken(self, request_id: str, is_last: bool) -> Deliver | None:
        with self._lock:
            return self._waiting.pop(request_id, None) if is_last else self._waiting.get(request_id)

    def _death(self, when: str) -> EngineStopped:
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return EngineStopped(f"the engine process closed its connection {when}.")
        if code >= 0:
            return EngineStopped(f"the engine process ended with exit code {code} {when}.")
        cause = " (often the system being out of memory: try a smaller --kv-bytes)" if code == -9 else ""
        return EngineStopped(f"the engine process was killed by signal {-code} {when}{cause}.")

    def _end(self, timeout_s: float) -> None:
        try:
            self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._frames.close()


def _start(command: tuple[str, ...], door: socket.socket | None) -> tuple[socket.socket, Process]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = subprocess.Popen(
            (*command, "--fd", str(theirs.fileno()), *(("--door", str(door.fileno())) if door is not None else ())),
            pass_fds=(theirs.fileno(), *((door.fileno(),) if door is not None else ())),
            stdin=subprocess.DEVNULL,
            stdout=2,  # our standard output belongs to whoever started us (--json)
        )
    return ours, process


def error_of(kind: ErrorKind, text: str) -> RidgelineError:
    """The error a Failed message stands for; process.kind_of is the way there."""
    if kind == "internal":
        return EngineStopped(f"the engine failed:\n{text}")
    kinds: dict[str, type[RidgelineError]] = {
        "user": UserError, "capacity": CapacityError, "invariant": InvariantError,
    }  # fmt: skip
    return kinds[kind](text)

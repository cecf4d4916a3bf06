"""Far doors: an engine on another machine calls the cluster, says where links reach it, and is told of them there.

Frames are small, and refused before they are read when they are not. Links are called for by who gives.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import TypeVar

import msgspec

from ridgeline.kit.errors import RidgelineError
from ridgeline.kit.version import __version__

from .door import FRAME_BYTES, Greeting, Met
from .handshake import Address, Stranger, call
from .link import InStream, Link
from .reception import NobodyCame, Reception

LENGTH = struct.Struct("<I")
MEET_S = 20.0  # for the two ends of a link to find each other
DOCK_S = 60.0  # for an engine that has called to say where it is
TICKS = 8  # looks at the other clock; the shortest counts


class DoorBroken(RidgelineError):
    """The other end of a door has gone, or says what is not said there."""


class Tick(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """at_s: the clock of who answers; 0: asked for."""

    at_s: float = 0.0


class Dock(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """An engine is here. address: where its links arrive. version: of its Ridgeline."""

    address: Address
    version: str = __version__


Said = Greeting | Tick | Dock
Kind = TypeVar("Kind", Greeting, Tick, Dock)


class CallingDoor:
    """An engine's. connection: to the cluster. Its links arrive at `reception`, or are called for."""

    def __init__(self, connection: socket.socket, secret: bytes, reception: Reception) -> None:
        self._connection, self._secret, self._reception = connection, secret, reception

    def announce(self) -> float:
        """Tell the cluster where links arrive. By how many seconds its clock is ahead of ours; 0 when it may be the
        same one."""
        best_s, ahead_s = float("inf"), 0.0
        for _ in range(TICKS):
            asked_s = time.perf_counter()
            say(self._connection, Tick())
            there_s = hear(self._connection, Tick).at_s
            heard_s = time.perf_counter()
            if heard_s - asked_s < best_s:
                best_s = heard_s - asked_s
                ahead_s = 0.0 if asked_s <= there_s <= heard_s else there_s - (asked_s + heard_s) / 2
        say(self._connection, Dock(self._reception.address))
        return ahead_s

    def open(self, met: Met) -> None:
        with contextlib.suppress(DoorBroken):  # closed, or worth nothing any more
            while True:
                greeting = hear(self._connection, Greeting)
                threading.Thread(
                    target=self._meet, args=(greeting, met), name=f"ridgeline-meet-{greeting.name}", daemon=True
                ).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # wakes the thread that hears
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._reception.close()

    def _meet(self, greeting: Greeting, met: Met) -> None:
        """Who gives always gets a link, if only a broken one: what it has to give goes back then."""
        try:
            if greeting.gives and greeting.address is not None:
                connection = call(greeting.address, self._secret, greeting.ticket, MEET_S)
            else:
                connection = self._reception.fetch(greeting.ticket, MEET_S)
        except (OSError, Stranger, NobodyCame):
            if not greeting.gives:
                return
            connection, gone = socket.socketpair()
            gone.close()
        met(greeting, Link(connection, InStream(), rate=greeting.rate))


class FarDoor:
    """The cluster's end of a CallingDoor. address: where links reach its engine."""

    def __init__(self, connection: socket.socket, timeout_s: float = DOCK_S) -> None:
        """Answers what the engine asks until it has said where it is. DoorBroken when it does not, in time."""
        self._connection = connection
        connection.settimeout(timeout_s)
        while isinstance(said := _next(connection), Tick):
            say(connection, Tick(time.perf_counter()))
        connection.settimeout(None)
        if not isinstance(said, Dock):
            raise DoorBroken("an engine says first where it is")
        self.address, self.version = said.address, said.version

    def tell(self, greeting: Greeting) -> None:
        """DoorBroken when its engine has ended."""
        say(self._connection, greeting)

    def close(self) -> None:
        self._connection.close()


def say(connection: socket.socket, message: Said) -> None:
    body = msgspec.msgpack.encode(message)
    if len(body) > FRAME_BYTES:
        raise DoorBroken(f"a frame of {len(body)} bytes is over the limit of {FRAME_BYTES}")
    try:
        connection.sendall(LENGTH.pack(len(body)) + body)
    except OSError as error:
        raise DoorBroken(f"the other end is gone ({error})") from error


def hear(connection: socket.socket, kind: type[Kind]) -> Kind:
    """The next message, which is of this kind."""
    message = _next(connection)
    if not isinstance(message, kind):
        raise DoorBroken(f"{type(message).__name__} is not said now")
    return message


def _next(connection: socket.socket) -> Said:
    (length,) = LENGTH.unpack(_read(connection, LENGTH.size))
    if length > FRAME_BYTES:
        raise DoorBroken(f"a frame of {length} bytes was announced; the limit is {FRAME_BYTES}")
    try:
        message: Said = msgspec.msgpack.decode(_read(connection, length), type=Said)
    except msgspec.DecodeError as error:
        raise DoorBroken(f"what came is no message: {error}") from error
    return message


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            more = connection.recv(count - len(data))
        except OSError as error:
            raise DoorBroken(f"the other end is gone ({error})") from error
        if not more:
            raise DoorBroken("the other end is gone")
        data += more
    return data

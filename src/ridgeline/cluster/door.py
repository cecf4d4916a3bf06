"""Door: where an engine hears with whom it is linked. Owns what is said there, and the door on one machine: a packet
socket that carries file descriptors.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Protocol

import msgspec

from .handshake import Address
from .link import Carriage, InStream, Link
from .shared import Slots

FRAME_BYTES = 4096


class Greeting(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A link for this engine. On one machine its file descriptors come with it: the socket, and for shm the slots.

    name: of the link, as Add.to says it. gives: this engine gives. slot_bytes: 0 without shared memory. buffer: bytes
    that may be put aside by one that takes. ticket, address: of a link over TCP: what the giver says that it is, and
    where it calls."""

    name: str
    gives: bool
    slot_bytes: int = 0
    rate: float = 0.0
    buffer: int = 0
    ticket: str = ""
    address: Address | None = None


Met = Callable[[Greeting, Link], None]


class Door(Protocol):
    """An engine's own."""

    def open(self, met: Met) -> None:
        """Tells of links as they come, from any thread, until the door is closed."""
        ...

    def close(self) -> None: ...


class DescriptorDoor:
    """connection: a SOCK_SEQPACKET socket; one packet is one Greeting."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def open(self, met: Met) -> None:
        with contextlib.suppress(OSError):  # closed: nobody comes in any more
            while True:
                packet, numbers, _, _ = socket.recv_fds(self._connection, FRAME_BYTES, 2)
                if not packet:
                    return
                greeting = msgspec.msgpack.decode(packet, type=Greeting)
                slots = greeting.slot_bytes
                carriage: Carriage = Slots(numbers[1], slots) if slots else InStream()
                met(greeting, Link(socket.socket(fileno=numbers[0]), carriage, rate=greeting.rate))

    def close(self) -> None:
        self._connection.close()

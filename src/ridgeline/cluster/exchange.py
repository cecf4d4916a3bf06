"""Exchange: an engine's side of a cluster. Links come in through the door, a socket that carries file descriptors.

Implements engine.process.Exchange: between two steps it gives and takes sequences. Whoever starts the engines decides
who is linked with whom (cluster.py); this room is only told.
"""

from __future__ import annotations

import os
import queue
import socket
import threading

import msgspec

from ridgeline.engine.engine import Engine
from ridgeline.kit.errors import InvariantError
from ridgeline.state.event import TokenEvent

from .bell import Bell
from .giver import Giver
from .link import Carriage, InStream, Link
from .shared import Slots
from .taker import Taker

GREETING_BYTES = 4096


class Greeting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A link for this engine; its file descriptors come with it: the socket, and for shm the slots.

    name: of the link, as Add.to says it. gives: this engine gives. slot_bytes: 0 without shared memory. buffer: bytes
    that may be put aside by one that takes."""

    name: str
    gives: bool
    slot_bytes: int = 0
    rate: float = 0.0
    buffer: int = 0


class Exchange:
    """door: a SOCK_SEQPACKET socket; one packet is one Greeting."""

    def __init__(self, engine: Engine, door: socket.socket) -> None:
        if engine.kept is None:
            raise InvariantError("an engine that computes nothing has nothing to exchange")
        self._bell, self._door = Bell(), door
        self.number = self._bell.number
        self._giver, self._taker = Giver(engine, engine.kept, self._bell), Taker(engine, engine.kept, self._bell)
        self._greeted: queue.SimpleQueue[tuple[Greeting, list[int]]] = queue.SimpleQueue()
        threading.Thread(target=self._open_door, name="ridgeline-door", daemon=True).start()

    def send_on(self, request_id: str, to: str) -> None:
        self._giver.send_on(request_id, to)

    def migrate(self, request_id: str, to: str) -> TokenEvent | None:
        return self._giver.migrate(request_id, to)

    def cancel(self, request_id: str) -> TokenEvent | None:
        return self._giver.cancel(request_id)

    def turn(self) -> list[TokenEvent]:
        self._bell.hear()
        while not self._greeted.empty():
            self._meet(*self._greeted.get())
        self._taker.turn()
        return self._giver.turn()

    def close(self) -> None:
        self._giver.close()
        self._taker.close()
        self._door.close()
        self._bell.close()

    # -- inside

    def _open_door(self) -> None:
        try:
            while True:
                packet, numbers, _, _ = socket.recv_fds(self._door, GREETING_BYTES, 2)
                if not packet:
                    return
                self._greeted.put((msgspec.msgpack.decode(packet, type=Greeting), numbers))
                self._bell.ring()
        except OSError:
            return  # closed: nobody comes in any more

    def _meet(self, greeting: Greeting, numbers: list[int]) -> None:
        connection = socket.socket(fileno=numbers[0])
        carriage: Carriage = Slots(numbers[1], greeting.slot_bytes) if greeting.slot_bytes else InStream()
        link = Link(connection, carriage, rate=greeting.rate)
        if greeting.gives:
            self._giver.meet(greeting.name, link)
        else:
            self._taker.meet(greeting.name, link, greeting.buffer)


def introduce(giver: socket.socket, taker: socket.socket, greeting: Greeting, kind: str) -> None:
    """Link two engines through their doors. kind: shm or tcp; greeting: the giver's, slot_bytes of one block."""
    ends: list[socket.socket] = []
    numbers: list[int] = []
    slot_bytes = greeting.slot_bytes if kind == "shm" else 0
    try:
        ends += _tcp_pair() if kind == "tcp" else socket.socketpair()
        if slot_bytes:
            numbers.append(os.memfd_create("ridgeline-link", os.MFD_CLOEXEC))
            os.ftruncate(numbers[0], Slots.bytes_for(slot_bytes))
        for door, end, gives in ((taker, ends[1], False), (giver, ends[0], True)):
            told = msgspec.structs.replace(greeting, gives=gives, slot_bytes=slot_bytes)
            socket.send_fds(door, [msgspec.msgpack.encode(told)], [end.fileno(), *numbers])
    finally:
        for end in ends:
            end.close()
        for number in numbers:
            os.close(number)


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over this machine's loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        near = socket.create_connection(server.getsockname())
        far, peer = server.accept()
        while peer != near.getsockname():  # somebody else was faster
            far.close()
            far, peer = server.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far

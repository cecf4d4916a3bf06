"""Children: the launcher for one machine. Engines are child processes; links are made here and handed to both as file
descriptors: shared memory, or TCP over the loopback.
"""

from __future__ import annotations

import contextlib
import os
import socket

import msgspec

from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig

from .door import Greeting
from .launcher import OnStop
from .shared import Slots


class Children:
    """kind: of links, shm or tcp. command: of EngineClient."""

    def __init__(self, kind: str, command: tuple[str, ...] | None = None) -> None:
        self._kind, self._command = kind, command
        self._doors: dict[str, socket.socket] = {}

    def start(self, name: str, config: EngineConfig, on_stop: OnStop) -> EngineClient:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                client = EngineClient(config, command=self._command, door=theirs, on_stop=on_stop)
            except BaseException:
                ours.close()
                raise
        self._doors[name] = ours
        return client

    def link(self, giver: str, taker: str, greeting: Greeting) -> None:
        giving, taking = self._doors.get(giver), self._doors.get(taker)
        if giving is not None and taking is not None:
            with contextlib.suppress(OSError):  # one has ended just now
                introduce(giving, taking, greeting, self._kind)

    def forget(self, name: str) -> None:
        if (door := self._doors.pop(name, None)) is not None:
            door.close()

    def close(self) -> None:
        for name in list(self._doors):
            self.forget(name)


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

"""Guests: the launcher for engines that call. Somebody starts a worker somewhere (Hosts: rayhosts.py); it connects
back, proves that it knows the secret, and is then served like a child. Links between guests are TCP, called by givers.
"""

from __future__ import annotations

import secrets
import socket
import threading
from pathlib import Path
from typing import Protocol

import msgspec

from ridgeline.engine.client import EngineClient, EngineStopped, Process
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError
from ridgeline.kit.version import __version__

from .calling import DoorBroken, FarDoor
from .door import Greeting
from .handshake import new_secret, shown
from .launcher import OnStop
from .reception import NobodyCame, Reception

JOIN_S = 120.0  # to start Python on another machine and to call
DOOR = "/door"  # the second connection of an engine: its name is the first one's and this
NO_ANSWER, NOT_OURS = EXITS = (69, 77)  # exit codes of a worker that could not call: nobody answers; a stranger does


class Guest(Process, Protocol):
    """where: in words."""

    @property
    def where(self) -> str: ...


class Hosts(Protocol):
    """Machines where workers can be started."""

    address: str  # of this machine, for those

    def start(self, name: str, call: str, secret: str, threads: int) -> Guest:
        """`python -m ridgeline.worker --call CALL --name NAME` there; the secret is its standard input's first line,
        and it ends when that input does. threads: it will use. UserError when it cannot be started."""
        ...

    def close(self) -> None: ...


class Guests:
    def __init__(self, hosts: Hosts, join_s: float = JOIN_S) -> None:
        self._hosts, self._join_s = hosts, join_s
        self._secret = new_secret()
        self._reception = Reception(hosts.address, self._secret)
        self._doors: dict[str, FarDoor] = {}
        self._births = 0
        self._lock = threading.Lock()

    def start(self, name: str, config: EngineConfig, on_stop: OnStop) -> EngineClient:
        with self._lock:
            self._births += 1
            called = f"{name}.{self._births}"
        here, threads = shown(self._reception.address), config.threads or 1
        guest = self._hosts.start(called, here, self._secret.hex(), threads)
        try:
            control = self._await(called, name, guest)
            door = self._door(self._await(called + DOOR, name, guest), name, guest)
        except BaseException:
            guest.kill()
            raise
        try:
            client = EngineClient(config, joined=(control, guest), on_stop=on_stop)
        except BaseException as error:
            door.close()
            if isinstance(error, UserError):
                raise type(error)(f"{name}, {guest.where}: {error}{_cure(config.model, str(error))}") from error
            raise
        with self._lock:
            self._doors[name] = door
        return client

    def link(self, giver: str, taker: str, greeting: Greeting) -> None:
        with self._lock:
            giving, taking = self._doors.get(giver), self._doors.get(taker)
        if giving is None or taking is None:
            return
        told = msgspec.structs.replace(greeting, slot_bytes=0, ticket=secrets.token_hex(16))
        try:
            taking.tell(msgspec.structs.replace(told, gives=False))
            giving.tell(msgspec.structs.replace(told, gives=True, address=taking.address))
        except DoorBroken:
            pass  # one has ended just now

    def forget(self, name: str) -> None:
        with self._lock:
            door = self._doors.pop(name, None)
        if door is not None:
            door.close()

    def close(self) -> None:
        for name in list(self._doors):
            self.forget(name)
        self._reception.close()
        self._hosts.close()

    # -- inside

    def _await(self, called: str, name: str, guest: Guest) -> socket.socket:
        try:
            return self._reception.fetch(called, self._join_s, lambda: guest.poll() is None)
        except NobodyCame:
            raise EngineStopped(self._why_not(name, guest)) from None

    def _why_not(self, name: str, guest: Guest) -> str:
        """Why nobody came."""
        code, here = guest.poll(), shown(self._reception.address)
        if code == NO_ANSWER:
            return (
                f"{name} was started {guest.where} and cannot reach {here}, where it should call: let that machine "
                "connect to ports of this one."
            )
        if code == NOT_OURS:
            return f"{name} was started {guest.where}, and who answered it at {here} does not know the secret."
        if code is None:
            return f"{name} was started {guest.where} and has not called {here} within {self._join_s:.0f} s."
        return f"{name} was started {guest.where} and ended with exit code {code} before it had called {here}."

    def _door(self, connection: socket.socket, name: str, guest: Guest) -> FarDoor:
        try:
            door = FarDoor(connection)
        except DoorBroken as error:
            connection.close()
            raise EngineStopped(f"{name} was started {guest.where} and did not say where it is: {error}.") from error
        if door.version != __version__:
            door.close()
            raise UserError(
                f"{name}, {guest.where}: Ridgeline is {door.version} there and {__version__} here. Install the same "
                "version on all machines."
            )
        return door


def _cure(model: str, said: str) -> str:
    """A file that is here and not there."""
    path = Path(model.rpartition(":")[2])
    if not path.is_absolute() or str(path) not in said:
        return ""
    return " Every machine needs the model's files at the same path: copy them there, or share the directory."

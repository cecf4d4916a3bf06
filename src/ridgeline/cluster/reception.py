"""Reception: a TCP address where members of the cluster call; whoever waits for one by name gets its connection.

Strangers, and those who never speak, are sent away within seconds, and keep nobody waiting.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from ridgeline.kit.errors import RidgelineError

from .handshake import HANDSHAKE_S, Address, Stranger, answer

MOST_STRANGERS = 256  # that may be on the way to prove who they are
PARKED_S = 30.0  # a caller whom nobody has asked for
LOOK_S = 0.1


class NobodyCame(RidgelineError):
    """Who was expected has not called in time, or will not call any more."""


class Reception:
    """address: where it listens, a free port of `host`."""

    def __init__(self, host: str, secret: bytes, *, handshake_s: float = HANDSHAKE_S) -> None:
        """OSError when it cannot listen at this host."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family, backlog=MOST_STRANGERS)
        self.address: Address = self._server.getsockname()[:2]
        self._secret, self._handshake_s = secret, handshake_s
        self._changed = threading.Condition()
        self._here: dict[str, tuple[socket.socket, float]] = {}  # by their names, with the time they came
        self._room = threading.BoundedSemaphore(MOST_STRANGERS)
        self._is_closed = False
        self.refused = 0  # strangers
        threading.Thread(target=self._listen, name="ridgeline-reception", daemon=True).start()

    def fetch(self, name: str, timeout_s: float, is_due: Callable[[], bool] = lambda: True) -> socket.socket:
        """The connection of who calls as `name`. NobodyCame after timeout_s, when closed, and once is_due says no."""
        until_s = time.monotonic() + timeout_s
        with self._changed:
            while name not in self._here:
                if self._is_closed or time.monotonic() > until_s or not is_due():
                    raise NobodyCame(f"{name} has not called")
                self._changed.wait(LOOK_S)
            return self._here.pop(name)[0]

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            parked, self._here = list(self._here.values()), {}
            self._changed.notify_all()
        with contextlib.suppress(OSError):  # wakes the thread that waits for callers
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection, _ in parked:
            connection.close()

    # -- inside

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                if self._is_closed:
                    return
                time.sleep(LOOK_S)  # no descriptors left, or a caller who hung up: others may come
                continue
            self._send_away(time.monotonic() - PARKED_S)
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._meet, args=(connection,), name="ridgeline-reception-meet", daemon=True
            ).start()

    def _meet(self, connection: socket.socket) -> None:
        try:
            name = answer(connection, self._secret, self._handshake_s)
        except (Stranger, OSError):
            connection.close()
            self.refused += 1
            return
        finally:
            self._room.release()
        with self._changed:
            late = None if self._is_closed else self._here.pop(name, None)
            if not self._is_closed:
                self._here[name] = (connection, time.monotonic())
                self._changed.notify_all()
        for gone in (late[0] if late else None, connection if self._is_closed else None):
            if gone is not None:
                gone.close()

    def _send_away(self, before_s: float) -> None:
        """Those whom nobody has asked for since."""
        with self._changed:
            gone = [name for name, (_, came_s) in self._here.items() if came_s < before_s]
            connections = [self._here.pop(name)[0] for name in gone]
        for connection in connections:
            connection.close()

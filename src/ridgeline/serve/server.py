"""Server: uvicorn around the Door. SIGTERM drains: what was accepted is finished, exit 0; a second signal ends it.

Opens one port and nothing else.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from ridgeline.kit.errors import UserError

from .door import Door
from .protocol import BoundedProtocol
from .refusal import Refusal

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CLOSING_S = 2  # for connections that only have to be closed


class Server(uvicorn.Server):
    """exit_code: 0 after a drain, 1 when it was cut short."""

    def __init__(self, door: Door, listening: socket.socket, announce: Callable[[str], None]) -> None:
        limits = door.lineup.limits
        kind: Any = type("Protocol", (BoundedProtocol,), {"headers_s": limits.headers_s, "most": limits.connections})
        config = uvicorn.Config(
            door, http=kind, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=int(limits.keep_alive_s), timeout_graceful_shutdown=CLOSING_S,
            h11_max_incomplete_event_size=limits.header_bytes, backlog=1024,
        )  # fmt: skip
        super().__init__(config)
        self.door, self._listening, self._announce = door, listening, announce
        self.exit_code = 0
        self._drain_until: float | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self._listening.getsockname()[:2]
        self._announce(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    def drain(self) -> None:
        """Take nothing new; end when all is done, or when drain_s is over. Thread-safe."""
        self.door.lineup.drain()
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self.door.lineup.limits.drain_s

    async def on_tick(self, counter: int) -> bool:
        if self._drain_until is not None and not self.should_exit:
            is_late = time.monotonic() > self._drain_until
            if is_late:
                for job in self.door.lineup.jobs:
                    job.fail(Refusal(503, "draining", "The server ends; this request was cut short."))
            self.should_exit = is_late or next(self.door.lineup.jobs, None) is None
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_until is None:
            self.drain()
        else:  # what still runs is told, and the server ends within a breath
            self.exit_code, self._drain_until = 1, 0.0


def listen(host: str, port: int) -> socket.socket:
    """UserError when the port is taken or the host is none of ours."""
    family: Any = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(f"cannot listen on {host} port {port}: {error}. Choose another --port.") from error
    listening.setblocking(False)
    return listening

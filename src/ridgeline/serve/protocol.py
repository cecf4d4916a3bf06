"""Protocol: uvicorn's HTTP/1.1 over h11, with a bound on the time headers take and errors that are JSON."""

from __future__ import annotations

import asyncio
import socket
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .events import ENCODER
from .refusal import Refusal
from .wire import EXTENSION, SocketWire

LINGER_S = 1.0
SILENCE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 60_000))


class BoundedProtocol(H11Protocol):
    """headers_s: from the first byte (or the connection) to a whole header block. most: connections at a time."""

    headers_s = 10.0
    most = 1024

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._headers_timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _set_up(transport)
        if len(self.connections) > self.most:
            self._refuse(
                Refusal(503, "busy", f"{self.most} connections are open; come back.", headers={"Retry-After": "5"})
            )
            return
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        super().data_received(data)
        self._expect_headers()

    def handle_events(self) -> None:
        """The application finds its way to the socket in the scope."""
        super().handle_events()
        cycle: Any = self.cycle
        if cycle is not None and "extensions" not in cycle.scope:
            cycle.scope["extensions"] = {EXTENSION: SocketWire(cycle, self.flow, self.transport)}

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn while it handles h11's error."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        self._refuse(Refusal(status, "invalid_value", f"The HTTP request is not valid: {sys.exception() or msg}."))

    def _expect_headers(self) -> None:
        """A timer runs exactly while a header block is wanted and some of it, or none ever, has come."""
        is_waiting = self.conn.their_state is h11.IDLE and (self.cycle is None or bool(self.conn.trailing_data[0]))
        if not is_waiting:
            self._forget_timer()
        elif self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self.headers_s, self._too_slow)

    def _forget_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _too_slow(self) -> None:
        self._headers_timer = None
        self._refuse(Refusal(408, "invalid_value", f"The headers took longer than {self.headers_s:g} s."))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer below the application, and close."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._forget_timer()
        body = ENCODER.encode(refusal.body)
        phrase = HTTPStatus(refusal.status).phrase
        is_fresh = self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        more = "".join(f"{name}: {value}\r\n" for name, value in refusal.headers.items())
        if is_fresh:  # in the middle of another answer there is nothing to say
            self.transport.write(
                f"HTTP/1.1 {refusal.status} {phrase}\r\ncontent-type: application/json\r\n{more}"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )
        if self.cycle is not None and not self.cycle.response_complete:  # whoever reads the body learns that it ended
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # Closing at once, with bytes unread, would reset the connection and with it the answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def _set_up(transport: asyncio.Transport) -> None:
    """A peer that went away without a word (half-open) is found by the system, not waited for; and what is written to
    those that are there leaves at once."""
    wire = transport.get_extra_info("socket")
    if wire is None or wire.family == socket.AF_UNIX:
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Else the first token waits for the reader to acknowledge the headers, 40 ms. asyncio sets it only for
    # sockets that were made with their protocol's number.
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in SILENCE:
        if hasattr(socket, option):  # of Linux
            wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

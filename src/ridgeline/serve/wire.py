"""Wire: where the bytes of a stream go. Into the socket at once under our own server; through ASGI's `send` elsewhere.

One `send` a token costs more than the token's text: a task is woken, and walks through every layer around the endpoint.
"""

from __future__ import annotations

from typing import Any, Protocol

from starlette.types import Scope, Send

EXTENSION = "ridgeline.wire"  # of the ASGI scope: a Wire, where the server has one


class Wire(Protocol):
    """Used on the event loop, after the response has started."""

    def write(self, data: bytes) -> bool:
        """Takes all of it. False: no more before `drained` has ended."""
        ...

    async def drained(self) -> None: ...


class SocketWire:
    """Writes the chunk that h11 would make of the data; h11 itself learns of the response's start and end. A caller
    that is gone is told to whoever watches the connection, not here."""

    def __init__(self, cycle: Any, flow: Any, transport: Any) -> None:
        """cycle, flow: uvicorn's, of this request and its connection."""
        self._cycle, self._flow, self._transport = cycle, flow, transport
        self._is_chunked = cycle.scope["http_version"] == "1.1"

    def write(self, data: bytes) -> bool:
        if not data or self._cycle.disconnected or self._transport.is_closing():  # an empty chunk would end the answer
            return True
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        return not self._flow.write_paused

    async def drained(self) -> None:
        await self._flow.drain()


class SentWire:
    """What ASGI has: one message, awaited."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> bool:
        self._waiting.append(data)
        return not data

    async def drained(self) -> None:
        data, self._waiting = b"".join(self._waiting), []
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


def wire_of(scope: Scope, send: Send) -> Wire:
    found: Wire | None = (scope.get("extensions") or {}).get(EXTENSION)
    return found or SentWire(send)

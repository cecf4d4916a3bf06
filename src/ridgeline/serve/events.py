"""Server-sent events: one `data:` frame an event, flushed at once; a slow reader is waited for, but not for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .job import Gone
from .refusal import Refusal
from .response_answers import ResponseEvent
from .wire import Wire, wire_of

HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
LONG_S = 0.001  # a send into a buffer takes microseconds
DONE = b"data: [DONE]\n\n"
ENCODER = msgspec.json.Encoder()


def frame(body: Any) -> bytes:
    """One event, with its name when it has one. JSON has no raw line breaks, so a frame is never torn."""
    if isinstance(body, ResponseEvent):
        return b"event: " + body.type.encode() + b"\ndata: " + ENCODER.encode(body) + b"\n\n"
    return b"data: " + ENCODER.encode(body) + b"\n\n"


Pour = Callable[[Wire, Callable[[], Awaitable[None]]], Awaitable[None]]


class EventStream(Response):
    """pour: writes whole frames, [DONE] included, into a wire, and awaits what it is given whenever the wire is full; a
    Refusal raised by it ends the stream with an error event and without [DONE]. close: called in the end. stall_s: how
    long the reader may take none before it counts as gone."""

    def __init__(
        self, pour: Pour, close: Callable[[], None], stall_s: float, stalled: Callable[[float], None]
    ) -> None:  # fmt: skip
        """stalled: told of every wait for the reader."""
        super().__init__(status_code=200, headers=HEADERS)
        del self.headers["content-length"]
        self._pour, self._close, self._stall_s, self._stalled = pour, close, stall_s, stalled

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire = wire_of(scope, send)

        async def ready() -> None:
            began_s = time.perf_counter()
            async with asyncio.timeout(self._stall_s):
                await wire.drained()
            if (took_s := time.perf_counter() - began_s) > LONG_S:
                self._stalled(took_s)

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._pour(wire, ready)
        except Refusal as error:
            await send({"type": "http.response.body", "body": frame(error.body), "more_body": True})
        except (Gone, TimeoutError):
            return
        finally:
            self._close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(ENCODER.encode(body), status, dict(headers or {}), "application/json")

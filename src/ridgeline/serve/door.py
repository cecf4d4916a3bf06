"""Door: the ASGI application. Every request comes through here: its id, its key, its limits, and how errors look.

Whatever fails inside leaves as one JSON error object; nothing of a fault but the request's id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .events import json_response
from .job import Gone
from .keys import Keys
from .lineup import Lineup
from .openapi import document
from .refusal import Refusal, internal
from .routes import OPEN, router
from .served import Served

ONE_HEADER_BYTES = 8 << 10
ID_CHARACTERS = 128
SHOWN = 200
LINGER_S = 1.0
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Max-Age": "600",
    "Access-Control-Allow-Headers": "authorization, content-type, x-request-id, x-deadline-ms, x-ttft-deadline-ms",
}  # fmt: skip
LOG = logging.getLogger("ridgeline.serve")
REQUESTS = logging.getLogger("ridgeline.serve.requests")  # nobody hears it unless logs were begun


class Door:
    """keys: without any, everybody may ask. State of the server that endpoints reach as request.app."""

    def __init__(
        self, models: Sequence[Served], keys: Keys, *, open_metrics: bool = False, is_aliasing: bool = False
    ) -> None:  # fmt: skip
        """UserError for models that cannot stand side by side."""
        self.lineup, self.keys, self.is_aliasing = Lineup(models), keys, is_aliasing
        self.document = document(
            list(self.lineup.models), max(one.facts.vocabulary for one in models),
            max(one.context for one in models), has_keys=bool(keys),
            has_tools=any(one.call_format is not None for one in models),
            has_efforts=any(one.efforts for one in models),
        )  # fmt: skip
        self._cors = frozenset(self.lineup.limits.cors)
        self._open = OPEN | ({"/metrics"} if open_metrics else set())
        self.under_way = 0
        self._router = router()
        self._tasks: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            with contextlib.suppress(asyncio.CancelledError):  # a second signal
                await self._live(receive, send)
        elif scope["type"] == "http":
            self.under_way += 1
            try:
                await self._enter(scope, receive, send)
            finally:
                self.under_way -= 1

    def is_known(self, scope: Scope) -> bool:
        """Whether the caller has a key, or needs none."""
        with contextlib.suppress(Refusal):
            self.keys.tenant(_all(scope, b"authorization"))
            return True
        return False

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = secrets.token_hex(12)
        request_id = _given_id(scope) or name
        state = scope.setdefault("state", {})
        told: dict[str, Any] = {}
        state.update(name=name, tenant="", request_id=request_id, told=told)
        began_s, status = time.perf_counter(), 0
        scope["app"] = self
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].rstrip("/") or "/"
        is_started = False
        allowed = self._allow_origin(scope)

        async def sending(message: Message) -> None:
            nonlocal is_started, status
            if message["type"] == "http.response.start":
                is_started, status = True, message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode("latin-1")),
                    *allowed,
                ]
            await send(message)

        is_read = False

        async def reading() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = not message.get("more_body", False)
            return message

        try:
            if allowed and scope["method"] == "OPTIONS" and _all(scope, b"access-control-request-method"):
                await Response(None, 204, PREFLIGHT)(scope, receive, sending)  # browsers ask this without a key
                return
            self._check(scope)
            await self._router(scope, reading, sending)
        except Exception as error:
            if isinstance(error, HTTPException) and error.status_code == 405 and scope["method"] == "OPTIONS":
                response: Response | None = Response(None, 204, _framework(error).headers)
            else:
                response = self._response(error, request_id, state.get("served"))
            if is_started:
                raise
            if response is not None:
                if not is_read and _has_body(scope):
                    await _pass_over(receive)
                await response(scope, receive, sending)
        finally:
            self._note(scope, status, time.perf_counter() - began_s, told)

    def _note(self, scope: Scope, status: int, seconds: float, told: dict[str, Any]) -> None:
        """One line a request; questions for its health only when they go wrong."""
        if status == 200 and scope["path"] in OPEN:
            return
        state = scope["state"]
        fields = {
            "request_id": state["request_id"], "method": scope["method"], "path": scope["path"][:SHOWN],
            "status": status, "seconds": round(seconds, 4), "tenant": state["tenant"] or None, **told,
            **({"model": served.name} if len(self.lineup) > 1 and (served := state.get("served")) else {}),
        }  # fmt: skip
        REQUESTS.info("request", extra={"fields": fields})

    def _allow_origin(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Headers that let the page's script read the answer; none for a stranger."""
        origins = _all(scope, b"origin")
        if len(origins) != 1 or not ({"*", origins[0].decode("latin-1")} & self._cors):
            return []
        return [
            (b"access-control-allow-origin", origins[0]), (b"vary", b"Origin"),
            (b"access-control-expose-headers", b"x-request-id, retry-after, retry-after-ms, x-should-retry"),
        ]  # fmt: skip

    def _check(self, scope: Scope) -> None:
        if any(len(value) > ONE_HEADER_BYTES for _, value in scope["headers"]):
            raise Refusal(
                431,
                "invalid_value",
                f"A header has more than {ONE_HEADER_BYTES} bytes.",
                headers={"Connection": "close"},
            )
        if scope["path"] not in self._open:
            scope["state"]["tenant"] = self.keys.tenant(_all(scope, b"authorization"))

    def _response(self, error: Exception, request_id: str, served: Served | None) -> Response | None:
        """served: whose request it was, as far as known. None: nobody is there to read one."""
        if isinstance(error, Gone | ClientDisconnect):
            return None
        if isinstance(error, HTTPException):
            error = _framework(error)
        if not isinstance(error, Refusal):
            LOG.error("request %s failed", request_id, exc_info=error)
            error = internal(request_id)
        self.lineup.rejected(served, error.code)
        return json_response(error.body, error.status, error.headers)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                lasting = [*self.lineup.turning(), *(revival.run() for revival in self.lineup.revivals)]
                self._tasks = [asyncio.create_task(one) for one in lasting]
                await send({"type": "lifespan.startup.complete"})
            else:
                for task in self._tasks:
                    task.cancel()
                self.lineup.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _framework(error: HTTPException) -> Refusal:
    """What Starlette raises by itself: a method that a path does not have."""
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    if error.status_code == 405:
        return Refusal(
            405, "method_not_allowed", f"Use {headers.get('Allow', 'another method')} here.", headers=headers
        )
    return Refusal(error.status_code, "invalid_value", str(error.detail), headers=headers)


async def _pass_over(receive: Receive) -> None:
    """A second of throwing away what comes: a connection closed on unread bytes is reset, and the answer lost."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass


def _has_body(scope: Scope) -> bool:
    return any(one != b"0" for one in _all(scope, b"content-length") + _all(scope, b"transfer-encoding"))


def _all(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _given_id(scope: Scope) -> str | None:
    """The caller's x-request-id, if it is short and printable."""
    given: list[Any] = _all(scope, b"x-request-id")
    text = given[0].decode("latin-1") if given else ""
    return text if 0 < len(text) <= ID_CHARACTERS and text.isascii() and text.isprintable() else None

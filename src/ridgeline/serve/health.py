"""Health: three questions, each answered truly (SERVING §6). A heart that asks the engine's loop for a sign of life.

live: should not be restarted. ready: send traffic. health: the engine's loop turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from .events import json_response
from .served import Served

ASKS = 5  # in the time after which the engine counts as stalled


class Health:
    """One a server; `beat` runs as long as the server does."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.is_draining = False
        self._asked_s: float | None = None

    async def beat(self) -> None:
        """Asks again only when the last answer is there, so that a stopped engine is not flooded."""
        while True:
            backend = self._served.backend
            pulse = backend.pulse
            if self._asked_s is None or (pulse is not None and pulse.at_s >= self._asked_s):
                self._asked_s = time.perf_counter()
                with contextlib.suppress(Exception):  # a dead engine says so through `failure`
                    await asyncio.wrap_future(self._served.send(backend.ask_pulse))
            await asyncio.sleep(self._served.limits.stalled_s / ASKS)

    def renew(self) -> None:
        """Another engine answers from now on."""
        self._asked_s = None

    @property
    def word(self) -> str:
        if self._served.backend.failure is not None:
            return "engine_down"
        return "ok" if self._served.age_s < self._served.limits.stalled_s else "stalled"

    @property
    def readiness(self) -> str:
        """ok, or why no traffic should come."""
        if self.is_draining:
            return "draining"
        return self.word if self.word != "ok" else ("ok" if self._served.queue.has_room else "busy")


async def health(request: HttpRequest) -> Response:
    """200 while the engine's loop turns. ?detail=1, with a key: numbers."""
    lineup = request.app.lineup
    if request.query_params.get("detail") != "1" or not request.app.is_known(request.scope):
        return _answer(request, lineup.word)
    engines = {one.name: {"heartbeat_age_s": one.age_s, **_pulse_of(one)} for one in lineup}
    return _answer(request, lineup.word, engines[lineup.first.name] if len(lineup) == 1 else {"engines": engines})


async def live(request: HttpRequest) -> Response:
    return _answer(request, request.app.lineup.life)


async def ready(request: HttpRequest) -> Response:
    return _answer(request, request.app.lineup.readiness)


def _pulse_of(served: Served) -> dict[str, float]:
    """The engine's own numbers, as it last told them."""
    pulse = served.backend.pulse
    numbers: dict[str, float] = {} if pulse is None else msgspec.to_builtins(pulse, builtin_types=())
    return numbers


def _answer(request: HttpRequest, word: str, more: Mapping[str, Any] | None = None) -> Response:
    """One word; of several models whose each, for who has a key."""
    lineup, headers = request.app.lineup, {} if word == "ok" else {"Retry-After": "5"}
    body = {"status": word, **(more or {})}
    if len(lineup) > 1 and request.app.is_known(request.scope):
        body["models"] = {name: health.readiness for name, health in lineup.health.items()}
    return json_response(body, 200 if word == "ok" else 503, headers)

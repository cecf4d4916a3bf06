"""Page: the files of the live page at `/`, and the numbers it shows. Nothing comes from another host.

The files need no key and tell nothing; /live does and counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.perf.totals import Window
from ridgeline.state.messages import MAP_CELLS, Pulse

from .answering import served_by
from .events import json_response

FOLDER = "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/page/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/page/engine.js": ("engine.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
PERCENTILES = (50, 90, 99)


class LiveVerdict(msgspec.Struct, frozen=True):
    cause: str
    words: str
    share: float
    of: str
    change: str


class LiveEngine(msgspec.Struct, frozen=True):
    """What the page shows. tokens: delivered so far; map: of every cell of the pool two hex digits, sixteenths held and
    cached; ttft_s, tpot_s: percentiles of the newest answers; phases: step seconds of the account's newest page."""

    status: str
    model: str
    models: list[str]
    at_s: float
    tokens: int
    running: int
    waiting: int
    slots: int
    blocks: int
    held: int
    cached: int
    free: int
    map: str
    latencies: int
    ttft_s: list[float | None]
    tpot_s: list[float | None]
    phases: dict[str, float]
    verdict: LiveVerdict | None


async def page(request: HttpRequest) -> Response:
    name, kind = FILES[request.url.path if request.url.path in FILES else "/"]
    data = resources.files(__package__).joinpath(FOLDER, name).read_bytes()
    return Response(data, headers={**HEADERS, "content-type": kind})


async def live_engine(request: HttpRequest) -> Response:
    """Asks for the next sign of life, tells the last one."""
    served = served_by(request)
    counted, lineup = served.metrics, request.app.lineup
    if served.backend.failure is None:
        served.send(served.backend.ask_pulse)
        await counted.windows.fresh()
    pulse = served.backend.pulse or Pulse(0.0)
    ttft, tpot = list(counted.recent_ttft_s), list(counted.recent_tpot_s)
    last = counted.windows.totals.last
    shown = LiveEngine(
        lineup.health[served.name].word, served.name, list(lineup.models), time.perf_counter(),
        counted.delivered, pulse.running, pulse.waiting,
        served.facts.max_sequences, pulse.blocks, pulse.blocks_held, pulse.blocks_cached, pulse.blocks_free,
        pulse.map[:MAP_CELLS].hex(), len(ttft), _percentiles(ttft), _percentiles(tpot),
        {} if last is None or last.summary is None else {one.name: one.seconds for one in last.summary.phases},
        _verdict(last),
    )  # fmt: skip
    return json_response(shown)


def _verdict(last: Window | None) -> LiveVerdict | None:
    if last is None or last.verdict is None:
        return None
    verdict = last.verdict
    change = f"{verdict.change.option}: {verdict.change.words}" if verdict.change is not None else ""
    return LiveVerdict(verdict.cause, verdict.words, verdict.share, verdict.of, change)


def _percentiles(values: Sequence[float]) -> list[float | None]:
    """Nearest rank."""
    known = sorted(values)
    if not known:
        return [None] * len(PERCENTILES)
    return [known[max(0, -(-share * len(known) // 100) - 1)] for share in PERCENTILES]

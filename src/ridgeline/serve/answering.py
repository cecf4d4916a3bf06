"""Answering: from a parsed request to its response. Before the first event an error has its status; after it, a frame.

Called by chat.py and completions.py, which only know shapes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Sequence

from msgspec import UNSET, UnsetType
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.perf.intervals import ClientNote
from ridgeline.perf.shares import RULE
from ridgeline.state.event import TokenEvent

from .answers import Account
from .choice import Delta
from .events import EventStream, frame, json_response
from .fields import Generation
from .job import Deadlines, Heard, Job
from .reading import read_body
from .refusal import Refusal, engine_down, invalid
from .served import Served
from .shape import Shape
from .wire import Wire


def chosen(request: HttpRequest, name: str | None) -> Served:
    """The model that a request names; the first where it names none. 404 for one that is not here."""
    served: Served = request.app.lineup.choose(name)
    request.state.served = served  # for its log line, and its count if it is refused
    return served


def served_by(request: HttpRequest) -> Served:
    """Of a request without a body: `?model=`."""
    named = request.query_params.getlist("model")
    if len(named) > 1:
        raise invalid(f"`model` is given {len(named)} times; give it once.", "model")
    return chosen(request, named[0] if named else None)


async def begin_note(request: HttpRequest) -> tuple[bytes, ClientNote]:
    """The body, and a note whose clock starts when its last byte was read."""
    limits = request.app.lineup.limits
    body = await read_body(request, limits.body_bytes, limits.body_s)
    arrival_s = time.perf_counter()
    request.state.since_ns = lambda: round((time.perf_counter() - arrival_s) * 1e9)
    return body, ClientNote(arrival_s, {})


def check_fields(ask: Generation) -> None:
    """What no type can say."""
    if ask.store:
        raise invalid("`store: true` is not supported here; leave it out.", "store", "unsupported_parameter")
    if ask.stream_options is not None and not ask.stream:
        raise invalid("`stream_options` needs `stream: true`.", "stream_options")


def check_open(request: HttpRequest, served: Served) -> None:
    """503 while nothing new is taken."""
    if request.app.lineup.is_draining:
        raise Refusal(503, "draining", "The server is about to end; ask another.", headers={"Retry-After": "5"})
    if served.backend.failure is not None:
        raise engine_down()


def deadlines_of(request: HttpRequest) -> Deadlines:
    """x-ttft-deadline-ms and x-deadline-ms: whole milliseconds from arrival."""
    found: list[float | None] = []
    for name in ("x-ttft-deadline-ms", "x-deadline-ms"):
        given = request.headers.get(name)
        if given is not None and not (given.isascii() and given.isdigit() and 0 < len(given) < 10 and int(given)):
            raise invalid(f"The header {name} is {given[:40]!r}; it is a number of milliseconds, at least 1.", name)
        found.append(None if given is None else int(given) / 1000)
    return Deadlines(*found)


async def answer(request: HttpRequest, shape: Shape, note: ClientNote) -> Response:
    """Whole, or as a stream."""
    served = shape.served
    requests = shape.requests(request.state.name, request.state.tenant)
    named_ns = sum(note.before.values())
    before = {"parse": max(0, request.state.since_ns() - named_ns), **note.before}  # the server's own work is parse
    notes = [ClientNote(note.begun_s, dict(before)) for _ in requests]
    check_open(request, served)
    job = Job(served, requests, notes, deadlines_of(request))
    job.told = request.state.told
    job.about = {
        "route": request.url.path, "request_id": request.state.request_id,
        "traceparent": request.headers.get("traceparent", ""),
    }  # fmt: skip
    is_streaming = False
    await job.begin(request.receive)
    try:
        if shape.asked.stream:
            first = await job.first(shape.choices)
            is_streaming = True
            pour = functools.partial(_pour, job, shape, first)
            return EventStream(pour, job.close, served.limits.stall_s, served.metrics.stalled)
        await job.hear(shape.choices, shape.keep, _never_full)
        return json_response(shape.whole(await _account(shape, job)))
    finally:
        if not is_streaming:
            job.close()


async def _never_full() -> None:
    """Whole answers are kept, not sent."""


async def _pour(job: Job, shape: Shape, first: Heard, wire: Wire, ready: Callable[[], Awaitable[None]]) -> None:
    async def write(data: bytes) -> None:
        if not wire.write(data):
            await ready()

    def take(index: int, delta: Delta, event: TokenEvent) -> bool:
        return wire.write(shape.frames(index, delta, event))

    await write(b"".join(map(frame, [*shape.opening(), *shape.chunks(*first)])))
    await job.hear(shape.choices, take, ready)
    if shape.is_always_closed or shape.asked.wants_usage:
        await write(frame(shape.closing(await _account(shape, job))))
    await write(shape.end)


async def _account(shape: Shape, job: Job) -> Account | UnsetType:
    """What the run's ledger says of these choices."""
    if not shape.asked.account:
        return UNSET
    ledger = await shape.served.off_loop(shape.served.backend.ledger)
    named = {one.request_id: one for one in ledger.requests}
    choices = [named[request.id] for request in job.requests if request.id in named]
    return Account(choices, _sum([one.wall_ns for one in choices]), _sum([one.cost_ns for one in choices]), RULE)


def _sum(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, spent in part.items():
            total[name] = total.get(name, 0) + spent
    return total

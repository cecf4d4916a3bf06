"""Job: the choices of one HTTP request at the engine. Events come in by post and are taken at once; leaving cancels.

Watches the caller's connection as long as it lives, also while nothing has been computed yet.
"""
# size: Job: every way to end has its method

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ridgeline.engine.client import EngineStopped
from ridgeline.kit.errors import CapacityError, RidgelineError, UserError
from ridgeline.perf.intervals import ClientNote
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

from .choice import Choice, Delta
from .metrics import Track
from .refusal import Refusal, engine_down, invalid
from .served import Served

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Heard = tuple[int, Delta, TokenEvent]
Take = Callable[[int, Delta, TokenEvent], bool]  # False: no more for now

ID_BYTES = 64  # of a token id in Python's hands, about


class Gone(Exception):
    """The caller has left; nobody waits for an answer."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds from arrival; the caller's own."""

    first_s: float | None = None
    last_s: float | None = None

    @property
    def nearest_s(self) -> float | None:
        return min((one for one in (self.first_s, self.last_s) if one is not None), default=None)


class Job:
    """Made and used on the event loop. `begin` hands everything over; `close` must follow, whatever happens."""

    def __init__(
        self, served: Served, requests: Sequence[Request], notes: Sequence[ClientNote], deadlines: Deadlines
    ) -> None:
        self.requests, self._notes, self._served, self._backend = requests, notes, served, served.backend
        self._deadlines = deadlines
        self._held_bytes = sum(ID_BYTES * len(request.prompt) for request in requests)
        self._loop = asyncio.get_running_loop()
        served.post.open()
        self._inbox: deque[tuple[int, TokenEvent | Exception]] = deque()  # what nobody could take at once
        self._taking: tuple[Sequence[Choice], Take] | None = None  # who takes what comes at once
        self._bell: asyncio.Future[bool] | None = None  # rung when there is something to do for who waits
        self._open: set[int] = set()
        self._tracks = [Track(note.begun_s, len(request.prompt)) for note, request in zip(notes, requests, strict=True)]
        self._timers: list[asyncio.TimerHandle] = []
        self._watch: asyncio.Task[None] | None = None
        self._why = "abort"  # how choices end that close finds open
        self.about: Mapping[str, str] = {}  # route, request_id, traceparent: for logs and traces
        self.told: dict[str, Any] = {}  # filled when it is closed

    async def begin(self, receive: Receive) -> None:
        """Refusal when there is no room, or for what the engine would not take; then nothing is left running."""
        self._served.queue.enter(len(self.requests), self._held_bytes, self._deadlines.nearest_s)
        self._served.jobs.add(self)
        self._watch = asyncio.create_task(self._until_gone(receive))
        self._set_timers()
        try:
            await asyncio.sleep(0)  # whoever left before, while a grammar was judged, is known then
            if self._inbox and isinstance(self._inbox[0][1], Gone):
                raise self._inbox[0][1]
            async with asyncio.timeout(self._served.limits.queue_wait_s):
                for index in range(len(self.requests)):
                    await self._submit(index)
        except TimeoutError:
            self._why = "error"
            self.close()
            raise engine_down("The engine takes no requests now; it may be stuck.") from None
        except BaseException as error:
            self._why = "error"
            self.close()
            raise refused(error) if isinstance(error, RidgelineError) else error from None

    async def _submit(self, index: int) -> None:
        request = msgspec.structs.replace(
            self.requests[index], arrival_s=time.perf_counter(), deadline_s=self._deadlines.last_s,
            ttft_deadline_s=self._deadlines.first_s,
        )  # fmt: skip
        self._open.add(index)
        await asyncio.wrap_future(self._served.send(self._hand_over, index, request))

    def _hand_over(self, index: int, request: Request) -> None:
        """On the sender's thread: the only one that asks the shadow index."""
        track = self._tracks[index]
        track.admitted_s = request.arrival_s or 0.0
        track.known = self._served.metrics.shadow.look(request.prompt, request.sharing_salt)
        self._backend.submit_to(request, functools.partial(self._served.post.put, self, index), self._notes[index])

    async def first(self, choices: Sequence[Choice]) -> Heard:
        """(index, what is new, its event). Refusal when a choice fails, Gone when nobody listens any more."""
        while True:
            while self._inbox:
                heard = self._hear(choices, *self._inbox.popleft())
                if heard is not None:
                    return heard
            await self._ring()

    async def hear(self, choices: Sequence[Choice], take: Take, ready: Callable[[], Awaitable[None]]) -> None:
        """Gives `take` everything that is new, as it comes, until every choice is finished; after a False not before
        `ready` has ended. Raises as `first` does, and what `take` raises."""
        while True:
            while self._inbox:
                heard = self._hear(choices, *self._inbox.popleft())
                if heard is not None and not take(*heard):
                    await ready()
            if not self._open:
                return
            self._taking = choices, take
            try:
                is_free = await self._ring()
            finally:
                self._taking = None
            if not is_free:
                await ready()

    def arrive(self, index: int, came: TokenEvent | Exception) -> None:
        """On the event loop. What comes while somebody takes is taken without waking anybody; never raises."""
        taking, bell = self._taking, self._bell
        if taking is None or bell is None or bell.done():
            self._inbox.append((index, came))
            if bell is not None and not bell.done():
                bell.set_result(True)
            return
        choices, take = taking
        try:
            heard = self._hear(choices, index, came)
            is_free = heard is None or take(*heard)
        except Exception as error:
            bell.set_exception(error)
            return
        if not (is_free and self._open):
            bell.set_result(is_free)

    async def _ring(self) -> bool:
        self._bell = self._loop.create_future()
        try:
            return await self._bell
        finally:
            self._bell = None

    def _hear(self, choices: Sequence[Choice], index: int, came: TokenEvent | Exception) -> Heard | None:
        """None: made before the cancel arrived."""
        if isinstance(came, Exception):
            self._why = self._why if isinstance(came, Gone) or index < 0 else "error"
            raise refused(came) if isinstance(came, RidgelineError) else came
        if index not in self._open:
            return None
        if came.finish == "error" and self.requests[index].is_ruled:
            self._why = "error"
            raise invalid(came.error or "The grammar could not be followed.", None, "grammar_unenforceable")
        if came.finish in ("error", "cancelled"):
            self._why = "error"
            raise refused(EngineStopped(came.error or "the request was cancelled."))
        delta = choices[index].take(came)
        self._served.metrics.came(self._tracks[index], len(delta.tokens), came)
        if delta.finish is not None:
            self._finish(index, delta.finish, came)
        return index, delta, came

    def _finish(self, index: int, reason: str, last: TokenEvent) -> None:
        self._open.discard(index)
        self._notes[index].close(last.at_s, time.perf_counter(), {})
        self._ended(index, reason, last)
        track = self._tracks[index]
        if track.made_s:
            self._served.queue.ended(max(0.0, last.at_s - (track.planned_s or track.admitted_s)))
        if last.finish is None:  # a stop string ended it; the engine does not know yet
            self._cancel(index)

    def fail(self, error: Exception, why: str = "abort") -> None:
        """Whoever hears gets it next."""
        self._why = why
        self.arrive(-1, error)

    def answers_to(self, name: str, tenant: str) -> bool:
        """Whether `name` is this request's, given by the same key: the id of its answer, with or without its prefix."""
        bare = name.rpartition("-")[2]
        return self.requests[0].tenant == tenant and self.requests[0].id.partition("-")[0] == bare

    def stop(self) -> None:
        """Somebody has asked for an early end: at once, not when somebody reads the inbox."""
        for index in self._open:
            self._cancel(index)
        never = {"x-should-retry": "false"}
        self.fail(Refusal(409, "cancelled", "The request was cancelled by its caller.", headers=never))

    def close(self) -> None:
        """Cancel what still runs. Idempotent."""
        for index in self._open:
            self._cancel(index)
            self._ended(index, self._why, None)
        self._open.clear()
        firsts = [track.first_s - track.begun_s for track in self._tracks if track.first_s is not None]
        self.told.update(
            prompt_tokens=sum(track.prompt_tokens for track in self._tracks), choices=len(self._tracks),
            completion_tokens=sum(track.tokens for track in self._tracks),
            ttft_s=round(min(firsts), 4) if firsts else None,
        )  # fmt: skip
        for timer in self._timers:
            timer.cancel()
        if self in self._served.jobs:
            self._served.jobs.discard(self)
            self._served.queue.leave(len(self.requests), self._held_bytes)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _ended(self, index: int, reason: str, last: TokenEvent | None) -> None:
        self._served.metrics.ended(self._tracks[index], reason, last)
        self.told["ended"] = reason
        if self._served.traces is not None:
            self._served.traces.ended(self._tracks[index], reason, last, self.about)

    def _set_timers(self) -> None:
        waited_s = time.perf_counter() - self._notes[0].begun_s
        for after_s, is_first in ((self._deadlines.first_s, True), (self._deadlines.last_s, False)):
            if after_s is not None:
                self._timers.append(self._loop.call_later(max(0.0, after_s - waited_s), self._expire, is_first))

    def _expire(self, is_first: bool) -> None:
        """A deadline has passed."""
        if is_first and all(track.first_s is not None for track in self._tracks):
            return
        for index in self._open:
            self._cancel(index)
        name = "x-ttft-deadline-ms" if is_first else "x-deadline-ms"
        never = {"x-should-retry": "false"}
        self.fail(Refusal(504, "deadline_exceeded", f"The deadline of {name} has passed.", headers=never), "deadline")

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        for index in self._open:  # at once, not when somebody reads the inbox
            self._cancel(index)
        self.fail(Gone())

    def _cancel(self, index: int) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended
            self._served.send(self._backend.cancel, self.requests[index].id)


def refused(error: RidgelineError) -> Refusal:
    """An engine's error as the caller sees it."""
    if isinstance(error, CapacityError):
        return invalid(str(error), code="context_length_exceeded")
    if isinstance(error, UserError):
        return invalid(str(error))
    if isinstance(error, EngineStopped):
        return engine_down("The engine has stopped; this request cannot be finished.")
    return Refusal(500, "internal_error", "The engine failed on this request.", headers={"x-should-retry": "false"})

"""Choose: which way of making steps is used now, by the estimate, and a log of what was switched, why, and what came of
it (E11). Ways differ in options that a running scheduler can change between two steps; no token depends on them.

Decides only while some are owed their next token and others have many to compute: else all ways are one.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import msgspec
import numpy as np

from ridgeline.state.event import TokenEvent
from ridgeline.state.sequence import Sequence

from .options import ScheduleOptions
from .pace import Curves, Pace
from .scheduler import Scheduler

IN_A_ROW = 2  # reviews that must agree before a switch
BETTER = 0.9  # with as many goals missed, only a way that is done in this part of the time is better
LOGGED = 100  # switches kept; the number of all is counted


class Goals(msgspec.Struct, frozen=True):
    """Seconds: from one token of an answer to the next, and from a request's arrival to its first."""

    gap_s: float
    first_s: float


class Way(msgspec.Struct, frozen=True):
    """name: as a place is written."""

    name: str
    options: ScheduleOptions
    pace: Pace | None = None


class Forecast(msgspec.Struct, frozen=True):
    """missed: goals, over those who are owed a token and those who wait for their first."""

    missed: int
    gap_s: float
    done_s: float

    def is_better(self, other: Forecast) -> bool:
        return self.missed < other.missed or (self.missed == other.missed and self.done_s < BETTER * other.done_s)


class Switch(msgspec.Struct, frozen=True):
    at_s: float
    before: str
    after: str
    why: str
    outcome: str


@dataclass(slots=True)
class Seen:
    """Since the last switch: [over the goal, all]."""

    gaps: list[int] = field(default_factory=lambda: [0, 0])
    firsts: list[int] = field(default_factory=lambda: [0, 0])

    def words(self) -> str:
        return (
            f"since then {self.gaps[0]} of {self.gaps[1]} gaps and {self.firsts[0]} of {self.firsts[1]} first tokens "
            "were later than the goal"
        )


class Chooser:
    """Sets scheduler.options and scheduler.pace between steps; the first way is in use from the start."""

    def __init__(self, scheduler: Scheduler, curves: Curves, ways: Many[Way], goals: Goals) -> None:
        self._scheduler, self._curves, self._ways, self.goals = scheduler, curves, tuple(ways), goals
        self.way = self._ways[0]
        self.switches = 0
        self._log: list[Switch] = []
        self._streak: tuple[str, int] = ("", 0)
        self._seen = Seen()
        self._last_s: dict[str, float] = {}  # of each request's newest token
        self._use(self.way)

    def review(self, now: float) -> None:
        """Before a step is planned."""
        running, waiting = self._scheduler.here
        owed = [one for one in running if one.tokens_to_compute == 1]
        others = [*(one for one in running if one.tokens_to_compute > 1), *waiting]
        if not owed or not others:
            return
        forecasts = {way.name: self._forecast(way, owed, others, now) for way in self._ways}
        current = forecasts[self.way.name]
        best = min(self._ways, key=lambda way: (forecasts[way.name].missed, forecasts[way.name].done_s))
        if not forecasts[best.name].is_better(current):
            self._streak = ("", 0)
            return
        self._streak = (best.name, self._streak[1] + 1 if self._streak[0] == best.name else 1)
        if self._streak[1] >= IN_A_ROW:
            tokens = sum(one.tokens_to_compute for one in others)
            said = "; ".join(
                f"{name} misses {one.missed} goals (gap {1e3 * one.gap_s:.0f} ms, done in {one.done_s:.2f} s)"
                for name, one in forecasts.items()
                if name in (self.way.name, best.name)
            )
            self._switch(best, now, f"{len(owed)} owed a token, {len(others)} with {tokens} to compute: {said}")

    def heard(self, events: Iterable[TokenEvent]) -> None:
        """After a step: what became of it."""
        for event in events:
            before = self._last_s.pop(event.request, None)
            if event.tokens and before is not None:
                _count(self._seen.gaps, event.at_s - before > self.goals.gap_s)
            elif event.tokens and (sequence := self._scheduler.find(event.request)) is not None:
                _count(self._seen.firsts, event.at_s - sequence.arrival_s > self.goals.first_s)
            if event.tokens and event.finish is None:
                self._last_s[event.request] = event.at_s

    def report(self) -> dict[str, object]:
        """now, goals, and the log: the last switch's outcome is what was seen until now."""
        log = [msgspec.to_builtins(one) for one in self._log]
        if log:
            log[-1]["outcome"] = self._seen.words()
        return {
            "now": self.way.name, "gap_goal_s": self.goals.gap_s, "first_goal_s": self.goals.first_s,
            "switches": self.switches, "log": log,
        }  # fmt: skip

    # -- inside

    def _use(self, way: Way) -> None:
        self._scheduler.options, self._scheduler.pace, self.way = way.options, way.pace, way

    def _switch(self, way: Way, now: float, why: str) -> None:
        if self._log:
            self._log[-1] = msgspec.structs.replace(self._log[-1], outcome=self._seen.words())
        self._log = [*self._log[1 - LOGGED :], Switch(now, self.way.name, way.name, why, "")]
        self._seen, self._streak = Seen(), ("", 0)
        self.switches += 1
        self._use(way)

    def _forecast(self, way: Way, owed: Many[Sequence], others: Many[Sequence], now: float) -> Forecast:
        """If it is used until all of this is computed."""
        left = np.cumsum([one.tokens_to_compute for one in others])
        context = sum(one.tokens_computed for one in owed) / len(owed)
        start, extra = others[0].tokens_computed, self._curves.extra
        beside = self._curves.of(len(owed), len(owed), context, start)
        curve = beside if way.options.mixes else self._curves.of(0, 0, 0.0, start)
        most = way.pace.fitting(curve) if way.pace is not None else len(extra) - 1
        at = min(most, int(np.searchsorted(extra, left[-1])))
        done = np.ceil(left / extra[at]) * curve[at]
        gap_s = float(curve[at] if way.options.mixes else done[-1] + beside[0])
        is_late = sum(
            now - one.arrival_s + at_s > self.goals.first_s
            for one, at_s in zip(others, done, strict=True)
            if not one.tokens_output
        )
        return Forecast(len(owed) * (gap_s > self.goals.gap_s) + int(is_late), gap_s, float(done[-1]))


def _count(pair: list[int], is_over: bool) -> None:
    pair[0] += is_over
    pair[1] += 1

"""Choose: which way of making steps is used now, by the estimate, and a log of what was switched, why, and what came of
it (E11). Ways differ in what a running scheduler and its engine can change between two steps; no token depends on them.

Decides only while some are owed their next token and others have many to compute: else all ways are one.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many

import msgspec
import numpy as np

from ridgeline.state.event import TokenEvent
from ridgeline.state.sequence import Sequence

from .options import ScheduleOptions
from .outcome import Outcome, Seen
from .pace import MEAN_SHARE, Beside, Curves, Pace, Seconds
from .scheduler import Scheduler

IN_A_ROW = 2  # reviews that must agree before a switch; one is enough where waiting for the second would cost most:
REST = 8.0  # gap goals after the last switch, a way that misses fewer goals is taken at once
OVER = 1.05  # a gap is forecast as missed when it is this many times the goal: contexts are rounded up
BETTER, WORTH = 0.9, 0.1  # with as many goals missed, only a way that is done in this part of the time is better, and
# saves this part of the goal for first tokens: else the next arrival may find the wrong way for nothing
LOGGED = 100  # switches kept; the number of all is counted
LEAST_RATIO, MOST_RATIO = 0.25, 4.0  # measured over estimated: beyond, a step was disturbed


class Goals(msgspec.Struct, frozen=True):
    """Seconds: from one token of an answer to the next, and from a request's arrival to its first."""

    gap_s: float
    first_s: float


class Way(msgspec.Struct, frozen=True):
    """name: as a place is written. beside: two streams of steps share the machine, and how long they take then; None:
    one stream has all of it."""

    name: str
    options: ScheduleOptions
    pace: Pace | None = None
    beside: Beside | None = None

    @property
    def is_split(self) -> bool:
        return self.beside is not None


class Forecast(msgspec.Struct, frozen=True):
    """missed: goals, over those who are owed a token and those who wait for their first."""

    missed: int
    gap_s: float
    done_s: float

    def is_better(self, other: Forecast, goals: Goals) -> bool:
        is_worth = other.done_s - self.done_s > max((1 - BETTER) * other.done_s, WORTH * goals.first_s)
        return self.missed < other.missed or (self.missed == other.missed and is_worth)

    def words(self) -> str:
        return f"misses {self.missed} goals (gap {1e3 * self.gap_s:.0f} ms, done in {self.done_s:.2f} s)"


class Switch(msgspec.Struct, frozen=True):
    """forecast: of the way that is used from then on; instead: of the one before it; None: it was asked for. seen: from
    then until the next switch."""

    at_s: float
    before: str
    after: str
    why: str
    forecast: Forecast | None = None
    instead: Forecast | None = None
    outcome: str = ""
    seen: Outcome | None = None


class Chooser:
    """Sets scheduler.options and scheduler.pace between steps; the first way is in use from the start. ratio: measured
    over estimated seconds of late, by which forecasts are corrected."""

    def __init__(self, scheduler: Scheduler, curves: Curves, ways: Many[Way], goals: Goals) -> None:
        self._scheduler, self._curves, self.ways, self.goals = scheduler, curves, tuple(ways), goals
        self.way = self.ways[0]
        self.switches, self.ratio, self._switched_s = 0, 1.0, float("-inf")
        self._log: list[Switch] = []
        self._streak: tuple[str, int] = ("", 0)
        self._seen = Seen()
        self._last_s: dict[str, float] = {}  # of each request's newest token
        self._expected_s = 0.0  # of the step to be planned, if all are one stream; 0: nobody knows
        self.use(self.way)

    def use(self, way: Way) -> None:
        """From the next step on."""
        self._scheduler.options, self._scheduler.pace, self.way = way.options, way.pace, way

    def review(self, now: float) -> None:
        """Before a step is planned."""
        self._expected_s = 0.0
        running, waiting = self._scheduler.here
        owed = [one for one in running if one.tokens_to_compute == 1]
        others = [*(one for one in running if one.tokens_to_compute > 1), *waiting]
        if not owed or not others:
            return
        forecasts = {way.name: self._forecast(way, owed, others, now) for way in self.ways}
        current = forecasts[self.way.name]
        best = min(self.ways, key=lambda way: (forecasts[way.name].missed, forecasts[way.name].done_s))
        if not forecasts[best.name].is_better(current, self.goals):
            self._streak = ("", 0)
            return
        self._streak = (best.name, self._streak[1] + 1 if self._streak[0] == best.name else 1)
        is_urgent = forecasts[best.name].missed < current.missed and now - self._switched_s >= REST * self.goals.gap_s
        if self.way.is_split or is_urgent or self._streak[1] >= IN_A_ROW:  # streams: reviewed between long steps only
            tokens = sum(one.tokens_to_compute for one in others)
            said = "; ".join(f"{name} {forecasts[name].words()}" for name in (self.way.name, best.name))
            why = f"{len(owed)} owed a token, {len(others)} with {tokens} to compute: {said}"
            self.switch(best, now, why, forecasts[best.name], current)

    def heard(self, events: Iterable[TokenEvent], took_s: float = 0.0) -> None:
        """After a step: what became of it. took_s: since the review before it was planned; 0: it shared the machine."""
        if took_s and self._expected_s:
            ratio = min(max(took_s / self._expected_s, LEAST_RATIO), MOST_RATIO)
            self.ratio += MEAN_SHARE * (ratio - self.ratio)
        for event in events:
            before = self._last_s.pop(event.request, None)
            if event.tokens and before is not None:
                self._seen.gap(event.at_s - before, self.goals.gap_s)
            elif event.tokens and (sequence := self._scheduler.find(event.request)) is not None:
                self._seen.first(event.at_s - sequence.arrival_s, self.goals.first_s)
            if event.tokens and event.finish is None:
                self._last_s[event.request] = event.at_s

    def report(self) -> dict[str, object]:
        """now, goals, and the log: the last switch's outcome is what was seen until now."""
        log = [msgspec.to_builtins(one) for one in self._log]
        if log:
            log[-1] |= {"outcome": self._seen.words(), "seen": msgspec.to_builtins(self._seen.outcome())}
        return {
            "now": self.way.name, "ways": [way.name for way in self.ways], "gap_goal_s": self.goals.gap_s,
            "first_goal_s": self.goals.first_s, "measured_over_estimated": self.ratio, "switches": self.switches,
            "log": log,
        }  # fmt: skip

    def switch(
        self, way: Way, now: float, why: str, forecast: Forecast | None = None, instead: Forecast | None = None
    ) -> None:
        """Use it, and log that."""
        if self._log:
            seen = self._seen
            self._log[-1] = msgspec.structs.replace(self._log[-1], outcome=seen.words(), seen=seen.outcome())
        self._log = [*self._log[1 - LOGGED :], Switch(now, self.way.name, way.name, why, forecast, instead)]
        self._seen, self._streak, self._expected_s = Seen(), ("", 0), 0.0
        self.switches, self._switched_s = self.switches + 1, now
        self.use(way)

    # -- inside

    def _fitting(self, curve: Seconds, gap_s: float) -> int:
        return max(int(np.searchsorted(curve, gap_s / self.ratio, side="right")) - 1, 0)

    def _forecast(self, way: Way, owed: Many[Sequence], others: Many[Sequence], now: float) -> Forecast:
        """If it is used until all of this is computed."""
        left = np.cumsum([one.tokens_to_compute for one in others])
        context = sum(one.tokens_computed for one in owed) / len(owed)
        start, extra = others[0].tokens_computed, self._curves.extra
        most = len(extra) - 1
        if way.beside is not None:
            part = int(extra[min(most, int(np.searchsorted(extra, left[-1])))])
            step_s, gap_s = way.beside.of(len(owed), context, start, part)
            done = np.ceil(left / part) * step_s
        else:
            beside = self._curves.of(len(owed), len(owed), context, start)
            curve = beside if way.options.mixes else self._curves.of(0, 0, 0.0, start)
            if way.pace is not None:  # it corrects itself too, with a margin
                most = min(way.pace.fitting(curve), self._fitting(curve, way.pace.gap_s))
            at = min(most, int(np.searchsorted(extra, left[-1])))
            done = np.ceil(left / extra[at]) * curve[at]
            gap_s = float(curve[at] if way.options.mixes else done[-1] + beside[0])
            if way is self.way:
                self._expected_s = float(curve[at])
        done, gap_s = self.ratio * done, self.ratio * gap_s
        is_late = sum(
            now - one.arrival_s + at_s > self.goals.first_s
            for one, at_s in zip(others, done, strict=True)
            if not one.tokens_output
        )
        return Forecast(len(owed) * (gap_s > OVER * self.goals.gap_s) + int(is_late), gap_s, float(done[-1]))

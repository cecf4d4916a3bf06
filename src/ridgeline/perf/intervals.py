"""Intervals: every nanosecond of one request, from its arrival to its last event, is one named interval (A2).

Works on a Timeline's steps, read late; guesses nothing: what no source names is `residual`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.state.plan import HOLDS

from .account import StepTable
from .overlap import IN_FLIGHT, cut
from .phases import ACTIVITIES, TOLD
from .timeline import Ended, Timeline

BEFORE = ("parse", "render", "tokenize", "grammar")
UNTRIED, RESTORE, WAIT, PREEMPTED, GAP = "queue_untried", "restore", "wait_in_batch", "preempted", "engine_gap"
BLOCKED = tuple(f"queue_blocked_{reason}" for reason in HOLDS)
INTERVALS = (
    *BEFORE, UNTRIED, *BLOCKED, RESTORE, *TOLD, WAIT, PREEMPTED, "transfer", GAP, "deliver", "client_stall",
    "residual",
)  # fmt: skip
PLACE = {name: place for place, name in enumerate(INTERVALS)}
ACTIVITY_PLACES = np.array([PLACE[name] for name in ACTIVITIES])

NOTES = 1 << 16

Integers = npt.NDArray[np.int64]
Segments = list[tuple[str, int, int]]  # name, begin, end: nanoseconds on the engine's clock, without holes


class ClientNote(msgspec.Struct):
    """What only the client's side knows of a request. Times on the engine's clock (one for all processes).

    begun_s: when the caller asked. before: nanoseconds by name, spent between begun_s and handing it over. last_s: when
    the step ended that made the last event the caller got; ended_s: when the caller had it, text and all. after:
    nanoseconds by name between the two; what is left of them is `deliver`.
    """

    begun_s: float
    before: dict[str, int]
    last_s: float | None = None
    ended_s: float | None = None
    after: dict[str, int] = {}

    def close(self, last_s: float, ended_s: float, spans: Mapping[str, Iterable[tuple[float, float]]]) -> None:
        """The caller has everything. spans: [begin, end] of what was done meanwhile; only the part after last_s counts,
        before it the engine was at work."""
        self.last_s, self.ended_s = last_s, ended_s
        self.after = {
            name: sum(to_ns(min(end, ended_s) - max(begin, last_s)) for begin, end in one if end > last_s)
            for name, one in spans.items()
        }


class ClientNotes:
    """The notes of one client, the last NOTES of them."""

    def __init__(self) -> None:
        self.by_request: dict[str, ClientNote] = {}

    def turn(self, page: StepTable) -> float:
        """Who ended on this page of the account has ended, whoever listens. Returns since when the oldest runs that has
        not; infinity: nobody does."""
        for one in () if page.timeline is None else page.timeline.ended:
            note = self.by_request.get(one.request)
            if note is not None and note.ended_s is None:
                note.ended_s = one.ended_s
        return min((note.begun_s for note in list(self.by_request.values()) if note.ended_s is None), default=math.inf)

    def forget(self, request_ids: Iterable[str]) -> None:
        for name in request_ids:
            self.by_request.pop(name, None)

    def open(self, request_id: str, note: ClientNote) -> ClientNote:
        """Keep it; the oldest goes when there are too many."""
        if len(self.by_request) >= NOTES:
            self.by_request.pop(next(iter(self.by_request)), None)
        self.by_request[request_id] = note
        return note


def to_ns(seconds: float) -> int:
    return round(seconds * 1e9)


@dataclass(slots=True)
class Steps:
    """The steps of a Timeline, ready to be looked up. All indices count from its first step."""

    began: Integers  # [steps] ns
    ended: Integers
    transfer_ns: Integers
    entries: Integers  # [n][ENTRY_COLUMNS], by sequence, then in order
    held: Integers  # [n][step, sequence, reason]
    preempted: Integers
    restored: Integers
    overlap: bool = False  # steps of two streams; then only `ended` rises

    @classmethod
    def of(cls, table: StepTable, timeline: Timeline) -> Steps:
        first = timeline.first_step
        times = np.rint(table.step_times()[first:] * 1e9).astype(np.int64)
        moved = [timeline.entry_rows(), timeline.held_rows(), timeline.preempted_rows(), timeline.restored_rows()]
        for at, rows in enumerate(moved):
            rows[:, 0] -= first
            moved[at] = rows[np.argsort(rows[:, 1], kind="stable")]
        entries, held, preempted, restored = moved
        return cls(
            times[:, 0], times[:, 1], timeline.step_rows()[:, 1], entries, held, preempted, restored, bool(table.shares)
        )

    def of_sequence(self, rows: Integers, sequence: int) -> Integers:
        """The part of `rows` (sorted by sequence) that is this sequence's."""
        low, high = np.searchsorted(rows[:, 1], (sequence, sequence + 1))
        return rows[low:high]


def engine_segments(steps: Steps, one: Ended, arrival_ns: int, end_ns: int) -> Segments:
    """From reaching the engine to the end of the step that made the last event."""
    low = int(np.searchsorted(steps.ended, arrival_ns, "right"))
    if steps.overlap:
        high = min(len(steps.ended), int(np.searchsorted(steps.ended, end_ns, "left")) + IN_FLIGHT)
    else:
        high = int(np.searchsorted(steps.began, end_ns, "left"))
    if high <= low or end_ns == arrival_ns:  # no time at all: it ended before it came, by clocks that differ
        return [(UNTRIED, arrival_ns, end_ns)]
    names = _step_names(steps, one.sequence, low, high)
    gaps = _gap_names(names)
    times = (arrival_ns, end_ns)
    if steps.overlap:
        own = np.isin(names, ACTIVITY_PLACES)
        pieces = cut(steps.began[low:high], steps.ended[low:high], own, *times)
    else:
        pieces = _in_turn(steps.began[low:high], steps.ended[low:high], *times)
    found: Segments = []
    restored = {int(row[0]) - low for row in steps.of_sequence(steps.restored, one.sequence)}
    for begin, end, step, is_inside in pieces:
        name = INTERVALS[(names if is_inside else gaps)[step]]
        if is_inside and step in restored:
            until = min(end, max(begin, int(steps.began[low + step] + steps.transfer_ns[low + step])))
            found.append((RESTORE, begin, until))
            begin = until
        found.append((name, begin, end))
    return _merged(found)


def _in_turn(began: Integers, ended: Integers, arrival: int, end: int) -> list[tuple[int, int, int, bool]]:
    """As overlap.cut, of steps one after another."""
    # boundaries: arrival, then began and ended of every step, then the end; gap and step in turn
    bounds = np.empty(2 * len(began) + 2, np.int64)
    bounds[0], bounds[-1] = arrival, end
    bounds[1:-1:2], bounds[2:-1:2] = began, ended
    bounds = np.clip(np.maximum.accumulate(bounds), arrival, end)
    places = np.flatnonzero(np.diff(bounds)).tolist()
    return [(int(bounds[place]), int(bounds[place + 1]), place // 2, place % 2 == 1) for place in places]


def _merged(found: Segments) -> Segments:
    """Neighbours of one name as one, empty ones left out."""
    segments: Segments = []
    for name, begin, end in found:
        if segments and segments[-1][0] == name:
            segments[-1] = (name, segments[-1][1], end)
        elif end > begin:
            segments.append((name, begin, end))
    return segments


def _step_names(steps: Steps, sequence: int, low: int, high: int) -> Integers:
    """[steps low..high) what each step was to the request."""
    count = high - low
    entries = steps.of_sequence(steps.entries, sequence)
    entries = entries[(entries[:, 0] >= low) & (entries[:, 0] < high)]
    own = np.full(count, -1, np.int64)
    own[entries[:, 0] - low] = ACTIVITY_PLACES[entries[:, 2]]  # the model's entry comes last in a step and wins
    state = np.zeros(count, np.int64)  # 0: as before, 1: runs from here on, 2: lost its blocks
    lost = steps.of_sequence(steps.preempted, sequence)[:, 0]
    state[lost[(lost >= low) & (lost < high)] - low] = 2
    state[own >= 0] = 1
    last = np.maximum.accumulate(np.where(state > 0, np.arange(count), -1))
    state = np.where(last >= 0, state[last], 0)
    names = np.select([own >= 0, state == 1, state == 2], [own, PLACE[WAIT], PLACE[PREEMPTED]], PLACE[UNTRIED])
    waiting = names == PLACE[UNTRIED]
    held = steps.of_sequence(steps.held, sequence)
    held = held[(held[:, 0] >= low) & (held[:, 0] < high)]
    if len(held):
        tried = held[:, 0].min() - low
        reasons = np.full(count, HOLDS.index("policy"), np.int64)  # tried before, and others now stand before it
        reasons[held[:, 0] - low] = held[:, 2]
        blocked = waiting & (np.arange(count) >= tried)
        names = np.where(blocked, PLACE[BLOCKED[0]] + reasons, names)
    return np.asarray(names, np.int64)


def _gap_names(names: Integers) -> Integers:
    """[steps + 1] what the time before each step, and after the last, was: still waiting, or the engine's own time."""
    waits = [PLACE[name] for name in (UNTRIED, *BLOCKED, PREEMPTED)]
    after = np.where(np.isin(names, waits), names, PLACE[GAP])
    return np.concatenate([[PLACE[UNTRIED]], after])


def segments_of(steps: Steps, one: Ended, note: ClientNote | None) -> Segments:
    """All of one request, in order and without holes."""
    arrival_ns, end_ns = to_ns(one.arrival_s), to_ns(one.ended_s)
    if note is None:
        return engine_segments(steps, one, arrival_ns, max(arrival_ns, end_ns))
    begun_ns = min(to_ns(note.begun_s), arrival_ns)
    segments = _portioned(note.before, begun_ns, arrival_ns, "residual")
    if note.last_s is not None:
        end_ns = min(end_ns, to_ns(note.last_s))
    end_ns = max(end_ns, arrival_ns)
    segments += engine_segments(steps, one, arrival_ns, end_ns)
    return segments + delivery(note, end_ns)


def delivery(note: ClientNote, end_ns: int) -> Segments:
    """From the last event to the caller's having it; nothing when that is not known."""
    if note.ended_s is None:
        return []
    return _portioned(note.after, end_ns, max(end_ns, to_ns(note.ended_s)), "deliver")


def _portioned(parts: dict[str, int], begin: int, end: int, rest: str) -> Segments:
    """Known durations one after the other, what is left under another name."""
    segments: Segments = []
    for name, spent in parts.items():
        until = min(end, begin + spent)
        segments.append((name, begin, until))
        begin = until
    return [segment for segment in (*segments, (rest, begin, end)) if segment[2] > segment[1]]

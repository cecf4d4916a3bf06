"""Joined: a request that went through two engines as one life, and the work of several engines as one account (E8).

From one Recording an engine. Between the step that made its first token and the moment it reached the next engine
everything is `transfer`, and so is putting its state into that engine's blocks. Leaves out, and counts, whoever was
seen in part: what an engine that died knew of its requests is lost with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ridgeline.state.event import HANDED_ON

from .account import OtherWork, StepTable
from .intervals import RESTORE, ClientNote, Segments, delivery, segments_of, to_ns
from .ledger import RequestLedger, RunLedger
from .phases import DECODE, PHASES, PREFILL
from .recording import Life, Recording
from .timeline import Ended

TRANSFER = "transfer"
AGAIN = re.compile(r"~\d+$")  # a later attempt (cluster.journey): what was before it is not known here
Part = tuple[Recording, Ended, RequestLedger]


def joined_ledger(recordings: Mapping[str, Recording]) -> RunLedger:
    """The ledger of a run on several engines: times of steps are sums over the engines."""
    whole, torn = _whole(recordings)
    requests = [_joined(parts, note) for parts, note in whole]
    wall: Counter[str] = Counter()
    for request in requests:
        wall.update(request.wall_ns)
    ledgers = [one.ledger for one in recordings.values()]
    return RunLedger(
        tuple(requests), dict(wall), sum(one.operators_ns for one in ledgers), sum(one.gaps_ns for one in ledgers),
        sum(one.host_ns for one in ledgers), sum(one.idle_ns for one in ledgers), sum(one.step_ns for one in ledgers),
        sum(one.engine_ns for one in ledgers), sum(one.steps for one in ledgers), len(torn),
        sum(one.account_ns for one in ledgers),
    )  # fmt: skip


@dataclass(frozen=True)
class JoinedRecording:
    """A run on several engines, as perf.recording.Recorded: to make a trace or rows of."""

    engines: Mapping[str, Recording]

    @cached_property
    def ledger(self) -> RunLedger:
        return joined_ledger(self.engines)

    @property
    def about(self) -> Mapping[str, Any]:
        return {**next(iter(self.engines.values())).about, "engines": list(self.engines)}

    def lives(self) -> list[Life]:
        names = {id(one): name for name, one in self.engines.items()}
        found = []
        for parts, note in _whole(self.engines)[0]:
            way = _way(parts, note)
            reason = "cancelled" if way.ends_on_way else parts[-1][1].reason
            at = tuple(names[id(one)] for one in way.at)
            found.append(Life(parts[0][1].request, reason, way.segments, at))
        return found


def _whole(recordings: Mapping[str, Recording]) -> tuple[list[tuple[list[Part], ClientNote | None]], set[str]]:
    """(those seen from beginning to end, the names of those that are known in part)."""
    lives, torn = _lives(recordings)
    whole = []
    for name, parts in lives.items():
        note = parts[0][0].notes.get(name)
        is_whole = [part[1].reason == HANDED_ON for part in parts] == [True] * (len(parts) - 1) + [False]
        is_cut = len(parts) == 1 and not is_whole and note is not None and note.last_s is not None
        if name in torn:
            continue
        if not parts[0][1].hands_on:
            torn.add(name)  # the engine that saw its beginning died since
        elif is_cut and note is not None and note.last_s is not None and note.last_s < parts[0][1].ended_s:
            torn.add(name)  # its last event is of no engine: it waited for one to be started again
        elif is_cut or is_whole:
            whole.append((parts, note))
        elif len(parts) > 1:
            torn.add(name)  # else it is still on its way, or at work in the next engine
    return whole, torn


def _lives(recordings: Mapping[str, Recording]) -> tuple[dict[str, list[Part]], set[str]]:
    """(the parts of every request in order, the names of those that are known in part): who came before any engine's
    record began, or was tried again. The order is that of the way, whatever the clocks say."""
    lives: dict[str, list[Part]] = {}
    torn: set[str] = set()
    seen = [(one, one.timeline) for one in recordings.values() if one.timeline is not None]
    since_s = max((timeline.since_s for _, timeline in seen), default=0.0)
    for one, timeline in seen:
        known = {ledger.request_id: ledger for ledger in one.ledger.requests}
        for part in timeline.ended:
            name = part.request if part.request in one.notes else AGAIN.sub("", part.request)
            if part.arrival_s < since_s or part.request not in known or name != part.request:
                torn.add(name)
            else:
                lives.setdefault(name, []).append((one, part, known[part.request]))
    for parts in lives.values():
        parts.sort(key=lambda part: (part[1].reason != HANDED_ON, part[1].ended_s))
    return lives, torn


class Way(NamedTuple):
    """at: in which engine each segment was."""

    segments: Segments
    at: list[Recording]
    ends_on_way: bool


def _way(parts: list[Part], note: ClientNote | None) -> Way:
    """All its parts but the last handed it on. One part that did: it was cancelled on its way."""
    segments: Segments = []
    at: list[Recording] = []
    last_s = None if note is None else note.last_s
    ends_on_way = last_s is not None and (len(parts) == 1 or last_s < parts[-1][1].entered_s)
    ends_on_way = ends_on_way and parts[0][1].reason == HANDED_ON
    lived = parts[:1] if ends_on_way else parts
    for place, (recording, one, _) in enumerate(lived):
        is_last = place == len(parts) - 1 and not ends_on_way
        if recording.steps is None:
            continue
        own = one if not place else msgspec.structs.replace(one, arrival_s=one.entered_s)
        found = segments_of(recording.steps, own, _note(note, own, is_first=not place, is_last=is_last))
        segments += found if not place else _after(segments[-1][2], _later(found))
        at += [recording] * (len(segments) - len(at))
    if ends_on_way and note is not None:
        segments += _end_on_way(note, segments[-1][2])
    at += [lived[-1][0]] * (len(segments) - len(at))
    return Way(segments, at, ends_on_way)


def _joined(parts: list[Part], note: ClientNote | None) -> RequestLedger:
    """One request."""
    segments, _, ends_on_way = _way(parts, note)
    wall: Counter[str] = Counter()
    for name, begin, end in segments:
        wall[name] += end - begin
    first, last, ledgers = parts[0][2], parts[-1][2], [part[2] for part in parts]
    costs: dict[str, dict[str, int]] = {}
    for place, ledger in enumerate(ledgers):
        for phase, groups in ledger.costs.items():
            phase = PHASES[DECODE] if place and phase == PHASES[PREFILL] else phase
            costs[phase] = dict(Counter(costs.get(phase, {})) + Counter(groups))
    return msgspec.structs.replace(
        last,
        arrival_s=first.arrival_s,
        finish="cancelled" if ends_on_way else last.finish,
        wall_ns={name: spent for name, spent in wall.items() if spent},
        e2e_ns=segments[-1][2] - segments[0][1],
        cost_ns={phase: sum(groups.values()) for phase, groups in costs.items()},
        costs=costs,
        cached_tokens=first.cached_tokens,
        computed_tokens=first.computed_tokens,
        recomputed_tokens=sum(one.recomputed_tokens for one in ledgers)
        + sum(one.computed_tokens for one in ledgers[1:]),
        preemptions=sum(one.preemptions for one in ledgers),
        tokens_guessed=sum(one.tokens_guessed for one in ledgers),
        tokens_accepted=sum(one.tokens_accepted for one in ledgers),
    )


def _after(begin: int, segments: Segments) -> Segments:
    """What the next engine did, the way there before it. Its clock may be behind: no time is told twice."""
    told = [(name, max(begin, since), until) for name, since, until in segments if until > begin]
    if not told:
        return [(TRANSFER, begin, begin)]
    return [(TRANSFER, begin, told[0][1]), *told]


def _end_on_way(note: ClientNote, begin: int) -> Segments:
    """From being handed on to the caller's last event: no engine was at work for it."""
    last_ns = max(begin, to_ns(begin * 1e-9 if note.last_s is None else note.last_s))
    return [(TRANSFER, begin, last_ns), *delivery(note, last_ns)]


def _note(note: ClientNote | None, one: Ended, *, is_first: bool, is_last: bool) -> ClientNote | None:
    """Of the client's note what belongs to this part."""
    if note is None or not (is_first or is_last):
        return None
    begun_s, before = (note.begun_s, note.before) if is_first else (one.arrival_s, {})
    if not is_last:
        return ClientNote(begun_s, before)
    return ClientNote(begun_s, before, note.last_s, note.ended_s, note.after)


def _later(segments: Segments) -> Segments:
    """What a later engine did, by other names: restoring what came along is the end of the way, and whose first token
    was chosen before has no prompt left to compute, though its engine may have to begin at 0 again."""
    renamed, is_restored = [], False
    for name, begin, end in segments:
        if name == RESTORE and not is_restored:
            name, is_restored = TRANSFER, True
        renamed.append((PHASES[DECODE] if name == PHASES[PREFILL] else name, begin, end))
    return renamed


def one_after_another(tables: Mapping[str, StepTable]) -> StepTable:
    """The steps of several engines as if one had run them in turn: seconds are engine-seconds. One alone stays as it
    is. Without a timeline: who did what when is each engine's own."""
    if len(tables) == 1:
        return next(iter(tables.values()))
    all_tables = list(tables.values())
    first = all_tables[0]
    shapes, times, begun, at_s = [], [], 0, 0.0
    for table in all_tables:
        rows, own = table.shape_rows().copy(), table.step_times().copy()
        rows[:, 0] += begun
        if len(own):
            own += at_s - own[0, 0]
            at_s = float(own[-1, 1])
        begun += len(own)
        shapes.append(rows)
        times.append(own)
    timed = [table.lines() for table in all_tables if table.line_ns]
    finished: Counter[str] = Counter()
    for table in all_tables:
        finished.update({reason: n for reason, n in table.finished.items() if reason != HANDED_ON})
    return msgspec.structs.replace(
        first,
        shapes=np.concatenate(shapes).tobytes(),
        times=np.concatenate(times).tobytes(),
        line_ns=np.sum(timed, axis=0).tobytes() if timed else b"",
        finished=dict(finished),
        others=_others(all_tables),
        experts=b"".join(table.experts for table in all_tables),
        memory={name: table.memory for name, table in tables.items()},
        timeline=None,
        **{
            name: sum(getattr(table, name) for table in all_tables)
            for name in (
                "host_s", "idle_s", "native_calls", "preemptions", "tokens_recomputed", "guessed", "accepted",
                "transfer_ns", "native_ns",
            )
        },
    )  # fmt: skip


def _others(tables: list[StepTable]) -> dict[str, OtherWork]:
    found: dict[str, OtherWork] = {}
    for table in tables:
        for name, work in table.others.items():
            if (before := found.get(name)) is not None:
                lines = [np.frombuffer(one.line_ns, np.int64) for one in (before, work)]
                work = OtherWork(
                    before.steps + work.steps, before.entries + work.entries, before.tokens + work.tokens,
                    sum(lines[1:], lines[0]).tobytes() if len(lines[0]) == len(lines[1]) else work.line_ns,
                )  # fmt: skip
            found[name] = work
    return found

"""Trace: a Recording as Chrome trace events (Perfetto, chrome://tracing): steps, phases, operators, requests (A2).

A slice of an operator is its sum over the layers of one step: their order within the step is not recorded, and the
trace says so. Flow arrows lead each request from its arrival through its phases to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import UserError

from .intervals import to_ns
from .ledger import StepLedger, step_ledger
from .phases import ACTIVITIES, DRAFT, TOLD
from .recording import Life, Recorded, Recording

Event = dict[str, Any]
ENGINE, REQUESTS, COUNTERS = 1, 2, 3  # processes of the trace
NEXT = 10  # between the processes of one engine and those of the next
STEPS, OPERATORS, FIRST_PHASE = 1, 2, 10  # threads of the engine
BESIDE = 100  # the same for steps that ran while another one did
Integers = npt.NDArray[np.int64]
NOTE = "operator slices are sums over the layers of a step, in the model's order; gaps and host time are not drawn"


def make_trace(recording: Recorded) -> dict[str, Any]:
    """The whole document; times in microseconds from the first thing that happened, with nanoseconds behind the dot."""
    lives = recording.lives()
    begins = [_begin(one) for one in recording.engines.values() if one.timeline is not None]
    origin = min([*begins, *(life.segments[0][1] for life in lives)], default=0)
    after = {name: NEXT * place for place, name in enumerate(recording.engines)}
    events = list(_process(REQUESTS, "requests"))
    for name, one in recording.engines.items():
        moved = [*_names(name), *_steps(one, origin), *_counters(one, origin)]
        events += [event | {"pid": event["pid"] + after[name]} for event in moved]
    for thread, life in enumerate(lives, 1):
        events.append(_name(REQUESTS, thread, f"{life.request} ({life.reason})"))
        events += _request(thread, life, [ENGINE + after[name] for name in life.engines], origin)
    about = {"note": NOTE, "share_rule": recording.ledger.share_rule, "origin_ns": origin, **recording.about}
    return {"displayTimeUnit": "ms", "otherData": about, "traceEvents": events}


def write_trace(recording: Recorded, path: Path) -> None:
    """UserError when it cannot be written."""
    write_bytes(path, msgspec.json.encode(make_trace(recording)))


def write_bytes(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Give a file in a folder that is there.") from error


def _begin(recording: Recording) -> int:
    timeline = recording.timeline
    since = 0 if timeline is None else timeline.first_step
    return to_ns(float(recording.table.step_times()[since:, 0].min()))


def _process(process: int, name: str) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}


def _names(engine: str) -> Iterator[Event]:
    """engine: which; "" when there is only one."""
    for process, name in ((ENGINE, "engine"), (COUNTERS, "counters")):
        yield from _process(process, f"{name} {engine}".strip())
    yield from (_name(ENGINE, track, name) for track, name in _tracks())


def _name(process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": name}}


def _slice(process: int, thread: int, name: str, begin_ns: int, took_ns: int, **arguments: Any) -> Event:
    event: Event = {
        "ph": "X", "name": name, "cat": "ridgeline", "pid": process, "tid": thread,
        "ts": begin_ns / 1e3, "dur": took_ns / 1e3,
    }  # fmt: skip
    return event | {"args": arguments} if arguments else event


def _steps(recording: Recording, origin: int) -> Iterator[Event]:
    """Steps, their operators one after the other, and a slice on the track of every phase that was in them."""
    timeline, steps = recording.timeline, recording.steps
    if timeline is None or steps is None:
        return
    whole = step_ledger(recording.table, timeline)
    rows = timeline.entry_rows()
    begins = np.searchsorted(rows[:, 0], np.arange(len(steps.began) + 1) + timeline.first_step)
    beside = _beside(steps.began, steps.ended)
    if beside.any():
        yield from (_name(ENGINE, track + BESIDE, f"{name} beside them") for track, name in _tracks())
    for step in range(len(steps.began)):
        track = BESIDE * int(beside[step])
        began, ended = int(steps.began[step]) - origin, int(steps.ended[step]) - origin
        mine = rows[begins[step] : begins[step + 1]]
        tokens, entries = int(mine[:, 4].sum()), len(np.unique(mine[:, 1]))
        yield _slice(
            ENGINE, track + STEPS, f"step {step + timeline.first_step}", began, ended - began, tokens=tokens,
            sequences=entries, operators_ns=int(whole.operators[step].sum()), gaps_ns=int(whole.gaps[step]),
            host_ns=int(whole.host[step]), idle_before_ns=int(whole.idle[step]),
        )  # fmt: skip
        yield from _operators(whole, step, began, ended, track)
        for activity in np.unique(mine[:, 2]).tolist():
            own = mine[mine[:, 2] == activity]
            phase = ACTIVITIES[activity]
            yield _slice(
                ENGINE, track + FIRST_PHASE + TOLD.index(phase), phase, began, ended - began,
                tokens=int(own[:, 4].sum()), sequences=len(own),
            )  # fmt: skip


def _tracks() -> Iterator[tuple[int, str]]:
    """Of the engine: numbers and names."""
    yield STEPS, "steps"
    yield OPERATORS, "operators (summed over layers)"
    for place, phase in enumerate(TOLD):
        yield FIRST_PHASE + place, phase


def _beside(began: Integers, ended: Integers) -> npt.NDArray[np.bool_]:
    """[steps] whether it ran while one was drawn already: slices of a track do not overlap. Longer ones are drawn
    first, so that short steps beside a long one are all together."""
    found = np.zeros(len(began), bool)
    order = np.argsort(began, kind="stable")
    until = np.iinfo(np.int64).min
    for step in order.tolist():
        found[step] = began[step] < until
        until = max(until, int(ended[step])) if not found[step] else until
    return found


def _operators(whole: StepLedger, step: int, began: int, ended: int, track: int) -> Iterator[Event]:
    """End to end from the step's begin, never past its end."""
    for group, spent in zip(whole.groups, whole.operators[step].tolist(), strict=True):
        took = min(spent, ended - began)
        if took > 0:
            yield _slice(ENGINE, track + OPERATORS, group, began, took)
            began += took


def _counters(recording: Recording, origin: int) -> Iterator[Event]:
    """Batch, tokens and blocks of KV by step; power where a meter is."""
    timeline, steps = recording.timeline, recording.steps
    if timeline is None or steps is None:
        return
    rows = timeline.entry_rows()
    rows = rows[rows[:, 2] != DRAFT]
    place = rows[:, 0] - timeline.first_step
    count = len(steps.began)
    blocks = -(-(rows[:, 3] + rows[:, 4]) // recording.block_tokens)  # a block that two read is counted for both
    named = (
        ("batch", "sequences", np.bincount(place, minlength=count)),
        ("tokens in the step", "tokens", np.bincount(place, rows[:, 4], count)),
        ("KV blocks in use", "blocks", np.bincount(place, blocks, count)),
    )
    for name, unit, values in named:
        for began, value in zip(steps.began.tolist(), values.tolist(), strict=True):
            yield _counter(name, unit, began - origin, value)
        yield _counter(name, unit, int(steps.ended[-1]) - origin, 0)
    for at_s, watts in recording.power:
        if to_ns(at_s) >= origin:
            yield _counter("power", "W", to_ns(at_s) - origin, watts)


def _counter(name: str, unit: str, at_ns: int, value: float) -> Event:
    return {"ph": "C", "name": name, "pid": COUNTERS, "tid": 0, "ts": at_ns / 1e3, "args": {unit: value}}


def _request(thread: int, life: Life, engines: Sequence[int], origin: int) -> Iterator[Event]:
    """Its intervals; and an arrow from its arrival to every phase it enters, and to its end. engines: the process of
    the trace where each interval was."""
    name, segments = life.request, life.segments
    flow = {"cat": "request", "name": "request", "id": thread}
    last, before = segments[-1], ("", 0)
    for segment, engine in zip(segments, engines, strict=True):
        interval, begin, end = segment
        yield _slice(REQUESTS, thread, interval, begin - origin, end - begin, request=name)
        is_phase = interval in TOLD
        if segment is segments[0] and len(segments) > 1:
            yield flow | {"ph": "s", "pid": REQUESTS, "tid": thread, "ts": (begin - origin) / 1e3}
        if is_phase and (interval, engine) != before:
            track = FIRST_PHASE + TOLD.index(interval)
            yield flow | {"ph": "t", "pid": engine, "tid": track, "ts": (begin - origin) / 1e3}
        if segment is last and len(segments) > 1:
            yield flow | {"ph": "f", "bp": "e", "pid": REQUESTS, "tid": thread, "ts": (begin - origin) / 1e3}
        before = (interval, engine) if is_phase else before

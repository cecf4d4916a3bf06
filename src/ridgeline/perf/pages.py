"""Pages: an account that goes on for weeks in bounded memory. What is turned goes into sums; the last pages stay whole.

Read by llm.py. Pages one after the other are one StepTable, so a request that spans them has one ledger, and every
reader of an account reads them as before. Forgets the oldest when they weigh too much; sums (totals.py) forget nothing.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from .account import OtherWork, StepTable
from .timeline import ENTRY_COLUMNS, Timeline

KEPT_BYTES = 32 << 20
REQUEST_BYTES = 500  # of one that ended, about
SUMS = ("native_calls", "preemptions", "tokens_recomputed", "guessed", "accepted", "tokens_cached", "transfer_ns",
        "native_ns", "account_ns")  # fmt: skip


class Pages:
    """lock: held by whoever reads the engine's account and these pages as one."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self.lock = threading.Lock()
        self._kept_bytes = kept_bytes
        self._pages: deque[StepTable] = deque()

    def add(self, page: StepTable, open_since_s: float = 0.0) -> list[str]:
        """The newest. Pages go that weigh too much, are older than who still runs (since open_since_s), or lie before
        one that has forgotten steps itself. Returns the requests that ended on them."""
        if not page.times:
            return []
        gone: list[StepTable] = []
        if page.timeline is not None and page.timeline.first_step:
            gone, self._pages = list(self._pages), deque()
        self._pages.append(page)
        while len(self._pages) > 1:
            is_heavy = sum(map(weight, self._pages)) > self._kept_bytes
            if not is_heavy and self._pages[1].begun_s >= open_since_s:
                break
            gone.append(self._pages.popleft())
        return [one.request for old in gone if old.timeline is not None for one in old.timeline.ended]

    def clear(self) -> None:
        self._pages.clear()

    @property
    def begun_s(self) -> float | None:
        """When the oldest that is kept began; None: nothing was forgotten."""
        return (self._pages[0].begun_s or None) if self._pages else None

    def with_last(self, table: StepTable) -> StepTable:
        """All that is kept and the page that is being written, as one."""
        return bound((*self._pages, table)) if self._pages else table


def weight(page: StepTable) -> int:
    """Bytes, about."""
    timeline = page.timeline
    kept = len(page.shapes) + len(page.times) + len(page.experts) + len(page.line_ns)
    if timeline is None:
        return kept
    moved = (timeline.entries, timeline.steps, timeline.held, timeline.preempted, timeline.restored, timeline.idle)
    return kept + sum(map(len, moved)) + REQUEST_BYTES * len(timeline.ended)


def bound(pages: Sequence[StepTable]) -> StepTable:
    """Pages of one engine, one after the other: the table that it would have given without turning."""
    last = pages[-1]
    steps = [len(page.times) // 16 for page in pages]
    begins = [0, *np.cumsum(steps).tolist()]
    times = np.concatenate([page.step_times() for page in pages])
    idle_s = sum(page.idle_s for page in pages)
    shares = np.concatenate([page.step_shares() for page in pages])
    begun_s = pages[0].begun_s
    since_s = begun_s or (float(times[:, 0].min()) if len(times) else 0.0)
    gaps_s = float(times[:, 1].max() - since_s - ((times[:, 1] - times[:, 0]) * shares).sum()) if len(times) else 0.0
    lines = [page.lines() for page in pages if page.lines().shape[1]]
    finished: Counter[str] = Counter()
    for page in pages:
        finished.update(page.finished)
    return msgspec.structs.replace(
        last,
        shapes=np.concatenate([_later(page.shape_rows(), begin) for page, begin in zip(pages, begins, strict=False)])
        .astype(np.int64)
        .tobytes(),
        times=times.tobytes(),
        line_ns=np.sum(lines, axis=0).tobytes() if lines else last.line_ns,
        host_s=max(0.0, gaps_s - idle_s),
        idle_s=idle_s,
        finished=dict(finished),
        others=_others(pages),
        shares=shares.tobytes() if any(page.shares for page in pages) else b"",
        experts=b"".join(page.experts for page in pages),
        timeline=_timeline([page.timeline for page in pages], begins),
        begun_s=begun_s,
        **{name: sum(getattr(page, name) for page in pages) for name in SUMS},
    )


def _later(rows: npt.NDArray[np.int64], begin: int) -> npt.NDArray[np.int64]:
    """Rows whose first column counts steps, counted from another page's beginning."""
    rows = rows.copy()
    rows[:, 0] += begin
    return rows


def _timeline(timelines: Sequence[Timeline | None], begins: Sequence[int]) -> Timeline | None:
    known = [(one, begin) for one, begin in zip(timelines, begins, strict=False) if one is not None]
    if len(known) != len(timelines):
        return None
    first, last = known[0][0], known[-1][0]

    def joined(name: str, columns: int, kind: type[np.int32] | type[np.float64]) -> bytes:
        parts = [np.frombuffer(getattr(one, name), kind).reshape(-1, columns).copy() for one, _ in known]
        for part, (_, begin) in zip(parts, known, strict=True):
            part[:, 0] = part[:, 0] + begin
        return np.concatenate(parts).tobytes()

    return Timeline(
        first.first_step, first.since_s, last.parts, joined("entries", len(ENTRY_COLUMNS), np.int32),
        b"".join(one.steps for one, _ in known), joined("held", 3, np.int32), joined("preempted", 2, np.int32),
        joined("restored", 2, np.int32), joined("idle", 3, np.float64),
        tuple(ended for one, _ in known for ended in one.ended),
    )  # fmt: skip


def _others(pages: Sequence[StepTable]) -> dict[str, OtherWork]:
    found: dict[str, OtherWork] = {}
    for page in pages:
        for name, work in page.others.items():
            if (before := found.get(name)) is not None:
                lines = [np.frombuffer(one.line_ns, np.int64) for one in (before, work) if one.line_ns]
                work = OtherWork(
                    before.steps + work.steps, before.entries + work.entries, before.tokens + work.tokens,
                    np.sum(lines, axis=0).tobytes() if lines else b"",
                )  # fmt: skip
            found[name] = work
    return found

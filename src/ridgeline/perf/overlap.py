"""Overlap: steps that run at the same time (E4), in ledgers that give every nanosecond to one.

A step owns its share of the time it ran; what nobody owned goes, as host time, to the step that ends next. To a request
its own step counts whole, then any other step, then the gap.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

IN_FLIGHT = 2  # steps at a time, at most


def owned_ns(began: Integers, ended: Integers, shares: Doubles) -> Integers:
    """[steps] nanoseconds of the whole machine."""
    return np.rint((ended - began) * shares).astype(np.int64)


def unowned_ns(began: Integers, ended: Integers, shares: Doubles, owned: Integers, idle: Integers) -> Integers:
    """[steps] between the end before and this one's, less what steps owned then and `idle`; with both they sum to the
    time from the first begin to the last end. began, ended: in the order of ended."""
    first = int(began.min())
    changes = np.concatenate([began, ended])
    order = np.argsort(changes, kind="stable")
    at = changes[order]
    rates = np.cumsum(np.concatenate([shares, -shares])[order])
    reached = np.concatenate([[0.0], np.cumsum(np.diff(at) * rates[:-1])])  # owned by then, at every change
    by_end = np.interp(ended, at, reached)
    free = np.diff(ended, prepend=first) - np.diff(by_end, prepend=0.0)
    found: Integers = np.maximum(np.rint(free).astype(np.int64) - idle, 0)
    # what rounding left, a few nanoseconds, goes where there is room for it
    found[int(found.argmax())] += int(ended.max()) - first - int(owned.sum()) - int(idle.sum()) - int(found.sum())
    return found


def covered_s(times: Doubles) -> float:
    """Seconds in which any step ran. times: [steps][began, ended]."""
    order = times[np.argsort(times[:, 0], kind="stable")]
    until = np.concatenate([order[:1, 0], np.maximum.accumulate(order[:, 1])[:-1]])
    return float(np.maximum(0.0, order[:, 1] - np.maximum(order[:, 0], until)).sum())


def cut(
    began: Integers, ended: Integers, own: npt.NDArray[np.bool_], arrival: int, end: int
) -> list[tuple[int, int, int, bool]]:
    """A request's time from arrival to end as (begin, end, step, is inside it): its own steps, else the next step to
    end that has begun, else the gap before the next step to end (len(began): after the last)."""
    points = np.concatenate([[arrival, end], began, ended])
    points = np.unique(points[(points >= arrival) & (points <= end)])
    begins = points[:-1]
    mine = np.flatnonzero(own)
    place = np.searchsorted(began[mine], begins, "right") - 1
    is_mine = (place >= 0) & (begins < ended[mine][np.maximum(place, 0)]) if len(mine) else np.zeros(len(begins), bool)
    following = np.searchsorted(ended, begins, "right")  # the next to end
    running = np.full(len(begins), -1)
    for ahead in reversed(range(IN_FLIGHT)):
        one = np.minimum(following + ahead, len(began) - 1)
        is_running = (following + ahead < len(began)) & (began[one] <= begins) & ~own[one]
        running = np.where(is_running, one, running)
    step = np.where(is_mine, mine[np.maximum(place, 0)] if len(mine) else 0, np.where(running >= 0, running, following))
    inside = is_mine | (running >= 0)
    return list(zip(begins.tolist(), points[1:].tolist(), step.tolist(), inside.tolist(), strict=True))

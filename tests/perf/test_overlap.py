"""Steps that run at the same time: each owns its share, a request's own step counts whole, nothing is told twice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.perf.overlap import covered_s, cut, owned_ns, unowned_ns


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_a_long_step_and_two_short_ones_beside_it() -> None:
    began, ended = ints(10, 42, 10), ints(40, 60, 110)
    shares = np.full(3, 0.5)
    owned = owned_ns(began, ended, shares)
    assert owned.tolist() == [15, 9, 50]
    # 10..40: nothing is left; 40..42: half of 2; 42..60: nothing; 60..110: half of 50
    assert unowned_ns(began, ended, shares, owned, ints(0, 0, 0)).tolist() == [0, 1, 25]


def test_time_in_which_any_step_ran() -> None:
    assert covered_s(np.array([[10, 40], [42, 60], [10, 110], [120, 121]], float)) == 101.0


def test_what_a_request_sees() -> None:
    began, ended = ints(10, 42, 10), ints(40, 60, 110)
    mine = cut(began, ended, np.array([True, True, False]), 0, 60)
    assert mine == [(0, 10, 0, False), (10, 40, 0, True), (40, 42, 2, True), (42, 60, 1, True)]
    assert cut(began, ended, np.array([False, False, True]), 0, 110)[1:] == [
        (10, 40, 2, True), (40, 42, 2, True), (42, 60, 2, True), (60, 110, 2, True),
    ]  # fmt: skip
    assert cut(began[:1], ended[:1], np.array([False]), 20, 70) == [(20, 40, 0, True), (40, 70, 1, False)]


lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 50)), min_size=0, max_size=12)


@given(first=lengths, second=lengths, whole=st.booleans(), data=st.data())
def test_every_nanosecond_once(first: list, second: list, whole: bool, data: st.DataObject) -> None:
    steps = []
    for lane, share in ((first, 0.5), (second, 0.25)):
        at = 5
        for pause, length in lane:
            at += pause + length
            steps.append((at - length, at, share))
    if not steps:
        return
    if whole:
        last = max(end for _, end, _ in steps)
        steps.append((last + 3, last + 10, 1.0))
    steps.sort(key=lambda one: one[1])
    began, ended = ints(*(one[0] for one in steps)), ints(*(one[1] for one in steps))
    shares = np.array([one[2] for one in steps])
    owned = owned_ns(began, ended, shares)
    free = unowned_ns(began, ended, shares, owned, np.zeros(len(steps), np.int64))
    assert int(owned.sum() + free.sum()) == int(ended[-1] - began.min())
    assert (free >= -len(steps)).all()
    lane = data.draw(st.sampled_from([0.5, 0.25]))
    end = data.draw(st.integers(2, int(ended[-1]) + 5))
    pieces = cut(began, ended, shares == lane, 1, end)
    assert [pieces[0][0], pieces[-1][1]] == [1, end]
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    own = sum(stop - start for start, stop, step, inside in pieces if inside and shares[step] == lane)
    mine = shares == lane
    assert own == int(np.clip(np.minimum(ended, end) - np.maximum(began, 1), 0, None)[mine].sum())

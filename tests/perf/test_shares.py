"""share: v1: whole nanoseconds, no entry far from its due, every step exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.perf.shares import bases, largest_remainder

from .conftest import record

step = st.tuples(st.integers(0, 10**11), st.lists(st.integers(0, 1 << 20), min_size=1, max_size=6))


@given(st.lists(step, min_size=1, max_size=6))
def test_parts_are_exact_and_nobody_is_a_nanosecond_off(steps: list[tuple[int, list[int]]]) -> None:
    totals = np.array([total for total, _ in steps])
    place = np.repeat(np.arange(len(steps)), [len(weights) for _, weights in steps])
    weight = np.array([one for _, weights in steps for one in weights])
    parts = largest_remainder(totals, place, weight)
    for number, (total, weights) in enumerate(steps):
        mine = parts[place == number].tolist()
        weights = weights if sum(weights) else [1] * len(weights)
        assert sum(mine) == total
        for part, one in zip(mine, weights, strict=True):
            due = Fraction(total * one, sum(weights))
            assert due - 1 < part < due + 1


def test_what_is_left_goes_to_the_largest_remainders_and_then_to_the_first():
    place = np.zeros(3, np.int64)
    assert largest_remainder(np.array([10]), place, np.array([1, 1, 1])).tolist() == [4, 3, 3]
    assert largest_remainder(np.array([10]), place, np.array([3, 3, 2])).tolist() == [4, 4, 2]
    assert largest_remainder(np.array([7]), place, np.array([0, 0, 0])).tolist() == [3, 2, 2]


def test_each_group_is_shared_by_what_it_works_on():
    assert bases(record()) == {
        "embed": "tokens", "attend_norm": "tokens", "qkv": "tokens", "attend": "attention", "out": "tokens",
        "attend_add": "tokens", "gather": "rows", "head": "rows", "sample": "rows",
    }  # fmt: skip

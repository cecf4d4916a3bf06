"""Pace: a step is cut to the time the estimate gives it, never below a grain; measured times move the cut."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.decode.decoder import Ask
from ridgeline.schedule.pace import GRAIN, Curves, Pace
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence


class LinearCosts:
    """1 ms, and 1 ms a token, and a microsecond a token of context."""

    def __init__(self) -> None:
        self.asked = 0

    def curve(self, program: str, entries: list, rows: int):
        self.asked += 1
        return 1e-3 + sum(1e-3 * np.asarray(tokens) + 1e-6 * before for before, tokens in entries)


def pace_of(gap_s: float = 0.1) -> Pace:
    return Pace(Curves(LinearCosts(), 512), gap_s)  # type: ignore[arg-type]


def running(*computed_of: tuple[int, int]) -> list[tuple[Sequence, Ask]]:
    """(known, computed) of each."""
    return [
        (Sequence(n, Request(str(n), (5,) * known, 9), 0.0, [5] * known, computed), Ask())
        for n, (known, computed) in enumerate(computed_of)
    ]


def test_a_step_has_what_fits_into_the_gap() -> None:
    tokens = pace_of().budget(running((101, 100), (51, 50), (700, 0)), 0.0)
    assert tokens == 2 + 96  # 1 + 2 * (1 + 0.128) + 96 < 100 ms, and one grain more is over


def test_nobody_owed_or_nothing_more_to_do_no_limit() -> None:
    assert pace_of().budget(running((700, 0), (300, 20)), 0.0) == 512
    assert pace_of().budget(running((101, 100), (51, 50)), 0.0) == 512


def test_the_hopeless_still_get_on() -> None:
    assert pace_of(0.001).budget(running((101, 100), (700, 0)), 0.0) == 1 + GRAIN
    many = [(700, 0)] * 40
    assert pace_of(0.001).budget(running((101, 100), *many), 0.0) == 1 + len(many)


def test_steps_that_take_longer_than_estimated_are_cut_shorter() -> None:
    pace, asks, now, found = pace_of(), running((101, 100), (700, 0)), 0.0, []
    for _ in range(60):
        tokens = pace.budget(asks, now)
        found.append(tokens)
        now += 2 * (1.128e-3 + 1e-3 * tokens)  # twice as long: 50 ms by the estimate, and 48 more would be 50.128
        pace.took(now)
    assert found[0] == 1 + 96 and found[-1] == 1 + 32
    assert pace.ratio == pytest.approx(2.0, abs=0.1)


def test_each_curve_is_computed_once() -> None:
    costs = LinearCosts()
    pace = Pace(Curves(costs, 512), 0.1)  # type: ignore[arg-type]
    for computed in range(600, 1000):
        pace.budget(running((computed + 1, computed), (700, 0)), 0.0)
    assert costs.asked == 1 + 4  # one at the start; contexts rounded up are 640, 768, 896, 1024

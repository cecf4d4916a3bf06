"""Pace: how many tokens a step may have so that those who are owed their next one get it in time (B6).

The one estimator's word, corrected by how long such steps took lately. Sees counts and contexts; decides nothing else.
Without anybody who is owed one token, or with nothing beyond that to do, a step may have all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt

from ridgeline.decode.decoder import MODEL, Ask
from ridgeline.run.costs import StepCosts
from ridgeline.run.split_costs import Other, SplitCosts
from ridgeline.state.sequence import Sequence

GRAIN = 16  # extra tokens are tried in multiples of this; the least that one who has many to compute gets
CONTEXT_GRAIN = 128  # contexts are rounded up to this, so that a curve (2 ms) is computed once and not in every step
CURVES = 512  # kept
# As TCP times its retransmissions (RFC 6298): a mean, and so many mean deviations above it. 3 of them are about the
# 99th percentile of a bell curve.
MEAN_SHARE, DEVIATION_SHARE, DEVIATIONS = 1 / 8, 1 / 4, 3.0
LEAST_RATIO, MOST_RATIO = 0.5, 4.0

Seconds = npt.NDArray[np.float64]


class Curves:
    """Estimated seconds of steps: of so many who are owed a token, and beside them 16, 32, ... tokens of one more."""

    def __init__(self, costs: StepCosts, most: int) -> None:
        """most: tokens of a step. Asks for one estimate, so that whatever that needs is measured now."""
        self._costs, self.most = costs, most
        self.extra = np.arange(GRAIN, most + GRAIN, GRAIN).clip(max=most)
        self._kept: dict[tuple[int, int, int, int], Seconds] = {}
        self.of(1, 1, 1.0, 0)

    def of(self, owed: int, tokens: int, context: float, start: int) -> Seconds:
        """Seconds [extra], never falling. tokens: of those who are owed one, with guesses; context: their mean one;
        start: of the one that gets the extra tokens."""
        key = (owed, tokens, _up(context), _up(start))
        if key not in self._kept:
            if len(self._kept) >= CURVES:
                self._kept.clear()
            each = [(key[2] * CONTEXT_GRAIN, tokens // owed)] * owed if owed else []
            seconds = self._costs.curve("model", [*each, (key[3] * CONTEXT_GRAIN, self.extra)], owed + 1)
            self._kept[key] = np.maximum.accumulate(seconds)
        return self._kept[key]


class Beside:
    """Estimated seconds of two steps that share the machine: a part of what somebody has to compute, and one of those
    who are owed a token."""

    def __init__(self, costs: SplitCosts, share: Callable[[], float]) -> None:
        """share: of the machine that the first of the two would get now."""
        self._costs, self._share = costs, share
        self._kept: dict[tuple[float, int, int, int, int], tuple[float, float]] = {}

    def of(self, owed: int, context: float, start: int, tokens: int) -> tuple[float, float]:
        """(of `tokens` after `start`, of those who are owed one); context: their mean one."""
        share = self._share()
        key = (share, owed, _up(context), _up(start), GRAIN * math.ceil(tokens / GRAIN))
        if key not in self._kept:
            if len(self._kept) >= CURVES:
                self._kept.clear()
            many = self._costs.shape([(key[3] * CONTEXT_GRAIN, key[4])])
            ones = self._costs.shape([(key[2] * CONTEXT_GRAIN, 1)] * owed)
            self._kept[key] = (
                self._costs.under(many, share, Other(ones, 1.0 - share)),
                self._costs.under(ones, 1.0 - share, Other(many, share)),
            )
        return self._kept[key]


class Pace:
    """gap_s: the time from one token to the next that is aimed at. ratio: measured over estimated, as it is used."""

    def __init__(self, curves: Curves, gap_s: float) -> None:
        self.gap_s, self._curves = gap_s, curves
        self._mean, self._deviation = 1.0, 0.0
        self._began_s = self._expected_s = 0.0

    @property
    def ratio(self) -> float:
        return min(max(self._mean + DEVIATIONS * self._deviation, LEAST_RATIO), MOST_RATIO)

    def budget(self, asks: Many[tuple[Sequence, Ask]], now: float) -> int:
        """Tokens of the model's program in the next step, all sequences together; at least one for each."""
        owed, context, tokens, others, start = 0, 0, 0, 0, 0
        for sequence, ask in asks:
            if ask.program != MODEL:
                continue
            if sequence.tokens_to_compute == 1:
                owed += 1
                context += sequence.tokens_computed
                tokens += 1 + len(ask.tree)
            else:
                start = sequence.tokens_computed if not others else start
                others += 1
        self._began_s, self._expected_s = now, 0.0
        if not owed or not others:
            return self._curves.most
        curve = self._curves.of(owed, tokens, context / owed, start)
        at = self.fitting(curve)
        self._expected_s = float(curve[at])
        return min(self._curves.most, tokens + max(int(self._curves.extra[at]), others))

    def fitting(self, curve: Seconds) -> int:
        """Which of Curves.extra keeps the gap; the least when none does."""
        return max(int(np.searchsorted(curve, self.gap_s / self.ratio, side="right")) - 1, 0)

    def took(self, ended_s: float) -> None:
        """The step of the last budget has ended."""
        if not self._expected_s:
            return
        ratio = (ended_s - self._began_s) / self._expected_s
        self._deviation += DEVIATION_SHARE * (abs(ratio - self._mean) - self._deviation)
        self._mean += MEAN_SHARE * (ratio - self._mean)


def _up(tokens: float) -> int:
    return math.ceil(tokens / CONTEXT_GRAIN)

"""Pace: how many tokens a step may have so that those who are owed their next one get it in time (B6).

The one estimator's word, corrected by how long such steps took lately. Sees counts and contexts; decides nothing else.
Without anybody who is owed one token, or with nothing beyond that to do, a step may have all there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt

from ridgeline.decode.decoder import MODEL, Ask
from ridgeline.run.costs import StepCosts
from ridgeline.state.sequence import Sequence

GRAIN = 16  # extra tokens are tried in multiples of this; the least that one who has many to compute gets
CONTEXT_GRAIN = 128  # contexts are rounded up to this, so that a curve (2 ms) is computed once and not in every step
CURVES = 512  # kept
# As TCP times its retransmissions (RFC 6298): a mean, and so many mean deviations above it. 3 of them are about the
# 99th percentile of a bell curve.
MEAN_SHARE, DEVIATION_SHARE, DEVIATIONS = 1 / 8, 1 / 4, 3.0
LEAST_RATIO, MOST_RATIO = 0.5, 4.0

Seconds = npt.NDArray[np.float64]


class Pace:
    """gap_s: the time from one token to the next that is aimed at. ratio: measured over estimated, as it is used."""

    def __init__(self, costs: StepCosts, gap_s: float, most: int) -> None:
        """most: tokens of a step, at most. Asks for one estimate, so that whatever that needs is measured now."""
        self.gap_s = gap_s
        self._costs, self._most = costs, most
        self._extra = np.arange(GRAIN, most + GRAIN, GRAIN).clip(max=most)
        self._curves: dict[tuple[int, int, int, int], Seconds] = {}
        self._mean, self._deviation = 1.0, 0.0
        self._began_s = self._expected_s = 0.0
        self._curve((1, 1, 1, 0))

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
            return self._most
        curve = self._curve((owed, tokens, _up(context / owed), _up(start)))
        fitting = int(np.searchsorted(curve, self.gap_s / self.ratio, side="right")) - 1
        at = max(fitting, 0)
        self._expected_s = float(curve[at])
        return min(self._most, tokens + max(int(self._extra[at]), others))

    def took(self, ended_s: float) -> None:
        """The step of the last budget has ended."""
        if not self._expected_s:
            return
        ratio = (ended_s - self._began_s) / self._expected_s
        self._deviation += DEVIATION_SHARE * (abs(ratio - self._mean) - self._deviation)
        self._mean += MEAN_SHARE * (ratio - self._mean)

    def _curve(self, key: tuple[int, int, int, int]) -> Seconds:
        """Seconds [extra]; never falling. key: sequences owed a token, their tokens, their mean context, the start of
        the one that gets the extra tokens (both in CONTEXT_GRAIN)."""
        if key not in self._curves:
            if len(self._curves) >= CURVES:
                self._curves.clear()
            owed, tokens, context, start = key
            each = [(context * CONTEXT_GRAIN, tokens // owed)] * owed
            seconds = self._costs.curve("model", [*each, (start * CONTEXT_GRAIN, self._extra)], owed + 1)
            self._curves[key] = np.maximum.accumulate(seconds)
        return self._curves[key]


def _up(tokens: float) -> int:
    return math.ceil(tokens / CONTEXT_GRAIN)

"""Fits: lines, curves, crossings and spreads of measured points, with what they are worth (R2, n)."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import msgspec
import numpy as np

Series = Sequence[tuple[float, float]]  # (x, y)


class Fit(msgspec.Struct, frozen=True):
    """y = a + b x + c x^2 (c 0 for a line). r2: share of the variance explained; n: points."""

    a: float
    b: float
    c: float
    r2: float
    n: int

    def at(self, x: float) -> float:
        return self.a + self.b * x + self.c * x * x


def line(points: Series) -> Fit | None:
    """Least squares; None for fewer than 3 points or all at one x."""
    return _fit(points, 1)


def curve(points: Series) -> Fit | None:
    """With a quadratic term; None for fewer than 4 points or 3 different x."""
    return _fit(points, 2)


def _fit(points: Series, degree: int) -> Fit | None:
    x, y = [at for at, _ in points], [value for _, value in points]
    if len(x) < degree + 2 or len(set(x)) < degree + 1:
        return None
    terms, *_ = np.linalg.lstsq(np.vander(np.array(x, float), degree + 1, increasing=True), np.array(y, float))
    a, b, c = (*terms.tolist(), 0.0)[:3]
    fit = Fit(a, b, c, 0.0, len(x))
    left = sum((value - fit.at(at)) ** 2 for at, value in zip(x, y, strict=True))
    whole = sum((value - statistics.fmean(y)) ** 2 for value in y)
    return msgspec.structs.replace(fit, r2=1 - left / whole if whole > 0 else 1.0)


def curved_from(fit: Fit, share: float = 0.1) -> float | None:
    """The x from which the quadratic term is more than `share` of the whole; None when it never is for x > 0."""
    if fit.c <= 0:
        return None
    # c x^2 = share (a + b x + c x^2)
    p, q, r = fit.c * (1 - share), -share * fit.b, -share * max(0.0, fit.a)
    return float((-q + math.sqrt(q * q - 4 * p * r)) / (2 * p))


def crossing(points: Series, level: float) -> float | None:
    """The first x at which y reaches `level` from below, interpolated in log x; None if it never does.

    A y that begins at or above the level crosses before the first x: that x is returned.
    """
    points = sorted(points)
    for index, (at, value) in enumerate(points):
        if value < level:
            continue
        if index == 0:
            return float(at)
        before, low = points[index - 1]
        part = (level - low) / (value - low)
        return float(math.exp(math.log(before) + part * (math.log(at) - math.log(before))))
    return None


def variation(values: Sequence[float]) -> float:
    """Standard deviation over mean; 0 for fewer than two values."""
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 and statistics.fmean(values) else 0.0


def plane(rows: Sequence[Sequence[float]], y: Sequence[float]) -> tuple[list[float], float] | None:
    """y = k0 + k1 x1 + k2 x2 ...: (k, R2); None for too few points."""
    if not rows or len(rows) < len(rows[0]) + 2:
        return None
    table, values = np.column_stack([np.ones(len(rows)), np.array(rows, float)]), np.array(y, float)
    terms, *_ = np.linalg.lstsq(table, values)
    whole = float(((values - values.mean()) ** 2).sum())
    left = float(((values - table @ terms) ** 2).sum())
    return terms.tolist(), 1 - left / whole if whole > 0 else 1.0


def is_rising(values: Sequence[float], slack: float = 0.03) -> bool:
    """Each at least the one before, less `slack` of noise."""
    return all(later >= (1 - slack) * earlier for earlier, later in itertools.pairwise(values))


def say(value: float) -> str:
    """Three figures, never with an exponent: 1,640; 9.5 million; 0.061."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} million"
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

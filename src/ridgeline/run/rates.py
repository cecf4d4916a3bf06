"""Rates of our own kernels by number of rows, as calibrated here: what predictions use and roofs never do.

Between measured rows linear; beyond the last the last slope. A format that was not calibrated borrows from its nearest
relative: the same arithmetic an element, its own bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

ROWS = (1, 2, 4, 8, 12, 16, 64, 256)  # 12: rows of a native panel; 16: a panel and a rest, the least part of a prompt
# Of a prompt's groups, how many `auto` activations keep in both planes: of one row, and of a full panel of 12 rows (a
# panel keeps what one of its rows keeps). SmolLM2, docs/findings/cpu-linear.md; a calibrated model has its own.
KEPT_OF_ROW, KEPT_OF_PANEL, PANEL = 0.13, 0.30, 12


class LineRate(msgspec.Struct, frozen=True):
    """seconds: a unit of work takes in a line of so many rows. The unit is a byte of weights, or, for operators
    without large weights, a byte of one row's activations. bits: of a weight; bytes_per_s: read bandwidth of the set
    that was read meanwhile."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    bits: float = 0.0
    bytes_per_s: float = 0.0

    def at(self, rows: Any) -> Any:
        """Numbers or arrays; nothing for no rows."""
        count = np.asarray(rows, float)
        beyond = np.maximum(count - self.rows[-1], 0.0)
        if len(self.rows) > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.rows[-1] - self.rows[-2])
        else:
            slope = self.seconds[-1] / self.rows[-1]
        return np.where(count > 0, np.interp(count, self.rows, self.seconds) + beyond * max(0.0, slope), 0.0)

    def weight_seconds(self, nbytes: Any, elements: Any, rows: Any, bytes_per_s: float) -> Any:
        """A product with `nbytes` of weights, read at `bytes_per_s` where nothing else limits it.

        The first row's time is reading and moves with the bandwidth; what more rows add is arithmetic, an element's.
        """
        reading = self.seconds[0]
        if self.bytes_per_s:  # never above the bandwidth, should that have been measured in a bad moment
            reading = max(reading * self.bytes_per_s, 1.0) / bytes_per_s
        more = np.maximum(self.at(rows) - self.seconds[0], 0.0) * self.bits / 8
        return np.where(np.asarray(rows) > 0, nbytes * reading + elements * more, 0.0)


def mixed(first: LineRate, second: LineRate, rows: tuple[int, ...] = ROWS) -> LineRate:
    """`auto` activations from one plane (first) and two (second): by how many groups keep their second."""
    shares = np.interp(rows, (1, PANEL), (KEPT_OF_ROW, KEPT_OF_PANEL))
    seconds = first.at(rows) + shares * (second.at(rows) - first.at(rows))
    return LineRate(rows, tuple(float(s) for s in seconds), first.bits, first.bytes_per_s)


def product_rate(
    rates: Mapping[str, LineRate], format_name: str, bits: float, is_integer: bool, activations: str
) -> LineRate | None:
    """The rate of products with weights of a format, or of its nearest relative; None: no such arithmetic calibrated.

    Keys of `rates`: "<format> <activations>" for integer products, "<format>" for others.
    """
    if not is_integer:
        return rates.get(format_name) or _nearest(rates, bits, "")
    mode = activations.partition(":")[0]
    exact = rates.get(f"{format_name} {mode}")
    if exact is not None:
        return exact
    if mode != "auto":
        return _nearest(rates, bits, mode)
    one = product_rate(rates, format_name, bits, is_integer, "int8")
    two = product_rate(rates, format_name, bits, is_integer, "int16")
    return mixed(one, two) if one is not None and two is not None else None


def _nearest(rates: Mapping[str, LineRate], bits: float, mode: str) -> LineRate | None:
    alike = [rate for key, rate in rates.items() if rate.bits and key.partition(" ")[2] == mode]
    return min(alike, key=lambda rate: abs(rate.bits - bits), default=None)

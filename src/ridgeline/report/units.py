"""Numbers as people read them: three significant digits, a unit, no false precision."""

from __future__ import annotations

import math

PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def digits(value: float, significant: int = 3) -> str:
    """Plain decimal with about `significant` digits: 0.123, 12.3, 1,235."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    decimals = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{round(value, decimals):,.{min(decimals, 6)}f}"


def scaled(value: float, unit: str) -> str:
    """With a decimal prefix: 1.53 GB/s, 812 MB, 2.31 TFLOP."""
    power = 0 if value == 0 else min(len(PREFIXES) - 1, max(0, math.floor(math.log10(abs(value)) / 3 + 1e-9)))
    return f"{digits(value / 1000**power)} {PREFIXES[power]}{unit}"


def seconds(value: float) -> str:
    """0.80 ms, 12.3 ms, 1.53 s, 2 min 5 s."""
    if value >= 120:
        return f"{int(value // 60)} min {int(value % 60)} s"
    if value >= 1 or value == 0:
        return f"{digits(value)} s"
    return f"{digits(value * 1e3)} ms" if value >= 1e-3 else f"{digits(value * 1e6)} µs"


def joules(value: float) -> str:
    """0.80 mJ, 12.3 mJ, 1.53 J, 2.10 kJ."""
    if abs(value) >= 1 or value == 0:
        return scaled(value, "J")
    return f"{digits(value * 1e3)} mJ" if abs(value) >= 1e-3 else f"{digits(value * 1e6)} µJ"


def nbytes(value: float) -> str:
    return scaled(value, "B")


def percent(share: float) -> str:
    """62 %; below 10 % with one decimal."""
    return f"{share * 100:.0f} %" if abs(share) >= 0.0995 else f"{share * 100:.1f} %"


def ratio(value: float) -> str:
    """1.07×"""
    return f"{digits(value)}×"

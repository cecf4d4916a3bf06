"""Clocks: the wall, and a virtual one for simulation. Seconds everywhere."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since an arbitrary origin, monotone."""
        ...


class WallClock:
    """ahead_s: by how much another machine's clock, which counts, is ahead of this one's."""

    def __init__(self, ahead_s: float = 0.0) -> None:
        self._ahead_s = ahead_s

    def now(self) -> float:
        return time.perf_counter() + self._ahead_s


class VirtualClock:
    """Time that moves only when told to."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time cannot go back ({seconds} s)")
        self._now_s += seconds

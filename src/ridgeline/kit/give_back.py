"""Give back: memory that was freed goes to the system, so that a process that lives for weeks stays small."""

from __future__ import annotations

import contextlib
import ctypes

ARENA_MAX = -8  # glibc's number of M_ARENA_MAX


def share_heap() -> None:
    """One heap for all threads from now on: what one has freed another uses, instead of each keeping its own."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)


def give_back() -> None:
    """What reading took for a moment, in large pieces. Some milliseconds; nothing where the C library cannot."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

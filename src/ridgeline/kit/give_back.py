"""Give back: memory that was freed goes to the system, so that a process that lives for weeks stays small."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """What reading took for a moment, in large pieces. Some milliseconds; nothing where the C library cannot."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

"""Post: carries events from the engine's reader thread to the event loop, a whole step's with one wake-up.

The reader hands over what one message held while the loop is still waking up: threads take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Protocol

from ridgeline.kit.errors import RidgelineError
from ridgeline.state.event import TokenEvent


class Taker(Protocol):
    def arrive(self, index: int, came: TokenEvent | RidgelineError) -> None:
        """On the event loop. Never raises."""
        ...


class Post:
    """One a model on offer. Events keep their order."""

    def __init__(self) -> None:
        self._came: deque[tuple[Taker, int, TokenEvent | RidgelineError]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_due = False  # the loop was woken and has not looked yet

    def open(self) -> None:
        """Called on the event loop, before anything is put."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._is_due = loop, False

    def put(self, taker: Taker, index: int, came: TokenEvent | RidgelineError) -> None:
        """Thread-safe."""
        self._came.append((taker, index, came))
        if not self._is_due and self._loop is not None:
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # the loop has ended: so has the server
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._is_due = False  # first: whoever puts something from here on wakes the loop again
        came = self._came
        for _ in range(len(came)):
            taker, index, one = came.popleft()
            taker.arrive(index, one)

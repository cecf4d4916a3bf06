"""Windows: turns the pages of the engine's account in time, so that a server can run for weeks, and keeps their sums.

Turned every ten seconds, sooner when many answers ended, and when somebody looks at an old one. Never read on the event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ridgeline.kit.errors import RidgelineError
from ridgeline.kit.give_back import give_back
from ridgeline.perf.totals import Totals, Window

from .backend import Backend

FIRST_S, EVERY_S = 1.0, 10.0
FRESH_S = 5.0  # who looks gets numbers not older than this
MOST_ENDED = 128  # choices on a page: what reading one takes for a moment does not grow with the load
LEAST_S = 0.25  # between two full pages


class Windows:
    """One a backend; `run` as long as the server lives."""

    def __init__(self, backend: Backend, seen: Callable[[Window], None] = lambda window: None) -> None:
        """seen: told of every page."""
        self.totals = Totals()
        self._backend, self._seen = backend, seen
        self._turned_s = time.perf_counter()
        self._turn = asyncio.Lock()
        self._full = asyncio.Event()
        self._ended = 0  # choices, since the page began
        self._thread = ThreadPoolExecutor(1, "ridgeline-pages")  # one: what reading takes is taken once, and used again

    async def run(self) -> None:
        every_s = FIRST_S  # soon: what the first page needs for good is there before anybody measures
        while True:
            try:
                async with asyncio.timeout(every_s):
                    await self._full.wait()
            except TimeoutError:
                await self.fresh(every_s / 2)
                every_s = min(EVERY_S, 2 * every_s)
            else:
                await asyncio.sleep(LEAST_S)
                self._full.clear()
                await self.fresh(LEAST_S)

    def ended(self) -> None:
        """One more choice is on this page."""
        self._ended += 1
        if self._ended >= MOST_ENDED:
            self._full.set()

    async def fresh(self, most_s: float = FRESH_S) -> None:
        """Turn a page unless that was done just now. An engine that does not answer leaves the sums as they are."""
        async with self._turn:
            if time.perf_counter() - self._turned_s < most_s or self._backend.failure is not None:
                return
            self._ended = 0
            with contextlib.suppress(RidgelineError):
                turning = asyncio.get_running_loop().run_in_executor(self._thread, self._turn_page)
                window = await turning
                if window is not None:
                    self.totals.add(window)
                    self._seen(window)
            self._turned_s = time.perf_counter()

    def _turn_page(self) -> Window | None:
        window = self._backend.turn_page()
        gc.collect()  # what failed or was cancelled holds itself; waiting for the collector would let it pile up
        give_back()
        return window

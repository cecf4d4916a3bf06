"""Windows: turns the pages of the engine's account in time, so that a server can run for weeks, and keeps their sums.

Also turned when somebody looks and the last page is old. Never on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ridgeline.kit.errors import RidgelineError
from ridgeline.perf.totals import Totals, Window

from .backend import Backend

EVERY_S = 10.0
FRESH_S = 5.0  # who looks gets numbers not older than this


class Windows:
    """One a backend; `run` as long as the server lives."""

    def __init__(self, backend: Backend, seen: Callable[[Window], None] = lambda window: None) -> None:
        """seen: told of every page."""
        self.totals = Totals()
        self._backend, self._seen = backend, seen
        self._turned_s = time.perf_counter()
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "ridgeline-pages")  # one: what reading takes is taken once, and used again

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self.fresh(EVERY_S / 2)

    async def fresh(self, most_s: float = FRESH_S) -> None:
        """Turn a page unless that was done just now. An engine that does not answer leaves the sums as they are."""
        async with self._turn:
            if time.perf_counter() - self._turned_s < most_s or self._backend.failure is not None:
                return
            with contextlib.suppress(RidgelineError):
                turning = asyncio.get_running_loop().run_in_executor(self._thread, self._backend.turn_page)
                window = await turning
                if window is not None:
                    self.totals.add(window)
                    self._seen(window)
            self._turned_s = time.perf_counter()

"""Revival: an engine that died is started again, so many times; what it was doing has failed and says so.

Health is red meanwhile, and new requests get 503 with Retry-After. A cluster does this for its own engines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from .health import Health
from .served import Served

LOOK_S = 0.2
WITHIN_S = 3600.0  # deaths older than this are forgiven
LOG = logging.getLogger("ridgeline.serve")


class Revival:
    """`run` as long as the server lives."""

    def __init__(self, served: Served, health: Health) -> None:
        self._served, self._health = served, health
        self._deaths: deque[float] = deque()
        self.revived = 0
        self._thread = ThreadPoolExecutor(1, "ridgeline-revival")

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            failure = self._served.backend.failure
            if failure is not None and not self._health.is_draining and not await self._revive(failure):
                return

    async def _revive(self, failure: Exception) -> bool:
        """False: it died too often; it stays down."""
        now_s = time.monotonic()
        while self._deaths and self._deaths[0] < now_s - WITHIN_S:
            self._deaths.popleft()
        most = self._served.limits.restarts
        if len(self._deaths) >= most:
            LOG.error("the engine is gone and is not started again (--engine-restarts %d): %s", most, failure)
            return False
        self._deaths.append(now_s)
        LOG.error("the engine is started again: %s", failure)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._served.backend.revive)
        except Exception as error:
            LOG.error("the engine did not start: %s", error)
            return True  # counts as a death; the next look tries again
        self.revived += 1
        self._served.began_s = time.perf_counter()
        self._health.renew()
        return True

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

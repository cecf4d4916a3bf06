"""Taking turns on a machine where several people measure: while one holds the turn, the others keep quiet.

The turn is a folder that only one can make (PATH.lock) and a file that all can see (PATH). Without a path: nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

LONGEST_S = 90.0  # then the others come first
SETTLE_S = 3.0  # between giving it back and asking again, so that others get it
PATIENCE_S, CALM = 45.0, 0.05  # what runs when we take the turn may end first: until others' share is small, or no more


class Turn:
    def __init__(self, path: Path | None, foreign: Callable[[], float | None]) -> None:
        """foreign: watches for a moment, and says what share of the processor others have."""
        self._path, self._foreign = path, foreign
        self._taken_s: float | None = None

    def take(self) -> None:
        """Wait for it and take it; kept when held already and not for too long."""
        if self._path is None:
            return
        if self._taken_s is not None and time.monotonic() - self._taken_s < LONGEST_S:
            return
        self.give()
        while True:
            try:
                self._lock.mkdir()
                break
            except FileExistsError:
                time.sleep(0.5)
        self.wait()  # for who took it without the folder
        self._path.touch()
        self._taken_s = time.monotonic()
        while time.monotonic() - self._taken_s < PATIENCE_S and (self._foreign() or 0.0) > CALM:
            pass
        self._taken_s = time.monotonic()

    def give(self) -> None:
        if self._path is None or self._taken_s is None:
            return
        self._path.unlink(missing_ok=True)
        self._lock.rmdir()
        self._taken_s = None
        time.sleep(SETTLE_S)

    def wait(self) -> None:
        """Until nobody measures: before heavy work that is not measured."""
        while self._path is not None and self._path.exists():
            time.sleep(0.5)

    @property
    def _lock(self) -> Path:
        assert self._path is not None
        return self._path.with_name(self._path.name + ".lock")

"""Taking turns on a machine where several people measure: while one holds the turn, the others keep quiet.

The turn is a folder that only one can make (PATH.lock) and a file that all can see (PATH). Without a path: nothing.
"""

from __future__ import annotations

import time
from pathlib import Path

LONGEST_S = 60.0  # then the others come first
SETTLE_S = 3.0  # what was running when we took the turn comes to an end


class Turn:
    def __init__(self, path: Path | None) -> None:
        self._path = path
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
        time.sleep(SETTLE_S)
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

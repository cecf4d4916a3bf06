"""Bell: other threads wake an engine's loop; readable until it was heard."""

from __future__ import annotations

import contextlib
import os


class Bell:
    """number: the file descriptor to poll."""

    def __init__(self) -> None:
        self.number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # closed: nobody listens any more
            os.eventfd_write(self.number, 1)

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.number)

    def close(self) -> None:
        os.close(self.number)

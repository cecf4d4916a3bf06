"""StopStrings: find the first stop string to complete in streamed text, and hold back text that may begin one."""

from __future__ import annotations

from collections.abc import Sequence

from ridgeline.kit.errors import UserError

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024


class StopStrings:
    """Feed text with `push`; it gives back what is safe to show. Once `matched` is set, everything later is dropped.

    The first stop string to *complete* wins (of several completing at once, the longest); the shown text ends before
    it. How the text was cut into pushes makes no difference.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        if any(not isinstance(stop, str) or not stop for stop in self._stops):
            raise UserError("a stop string is empty: it would end every answer at once. Leave it out.")
        if len(self._stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in self._stops):
            raise UserError(
                f"at most {MAX_STOPS} stop strings of at most {MAX_STOP_CHARACTERS} characters are allowed."
            )
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that is certain not to be part of a stop string."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        pending = self._held + text
        found = [(place + len(stop), place, stop) for stop in self._stops if (place := pending.find(stop)) >= 0]
        if found:
            _, place, self.matched = min(found)
            self._held = ""
            return pending[:place]
        keep = max(overlap(pending, stop) for stop in self._stops)
        cut = len(pending) - keep
        self._held = pending[cut:]
        return pending[:cut]

    def flush(self) -> str:
        """The text held back, when the stream ends without a match."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

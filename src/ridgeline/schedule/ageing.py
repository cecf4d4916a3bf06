"""Ageing: nobody starves under a policy that would let others pass for ever, and the others hardly notice.

Of those who have waited over the patience, the oldest is led to the front until it ends; one at a time, so that a
long queue of aged requests takes one place of the batch and not all.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Annotated

from ridgeline.state.sequence import Sequence

PatienceSeconds = Annotated[float, "seconds in the queue after which a request may be led to the front"]
PATIENCE_S = 30.0  # far over a usual time to first token, and about as long as a person waits


class Ageing:
    """Rank with `is_aged` first, call review before each plan and finished at each end."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self._aged: int | None = None

    def is_aged(self, sequence: Sequence) -> bool:
        return sequence.id == self._aged

    def review(self, waiting: Many[Sequence], now: float) -> bool:
        """True when somebody new was led to the front."""
        if self._aged is not None or not waiting:
            return False
        oldest = min(waiting, key=lambda sequence: (sequence.arrival_s, sequence.id))
        if now - oldest.arrival_s < self.patience_s:
            return False
        self._aged = oldest.id
        return True

    def finished(self, sequence: Sequence) -> None:
        if self.is_aged(sequence):
            self._aged = None

"""Admission: whether a request may wait, and for how long it would. Bounded in number, bytes and predicted seconds.

The prediction is measured here: how long an answer has its slot, from first planned to last token. Before any has ended
it is at least as long as the oldest has been inside.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ridgeline.state.messages import Pulse

from .refusal import Refusal

MOST_BYTES = 256 << 20
WEIGHT = 0.1  # of the newest answer in the running mean
MOST_RETRY_S = 120  # openai-python gives up beyond


class Queue:
    """Choices that were accepted and have not ended. Used on the event loop only."""

    def __init__(self, most: int, wait_s: float, slots: int, pulse: Callable[[], Pulse | None]) -> None:
        """most: choices inside; wait_s: predicted seconds that are too many; slots: choices that run at a time."""
        self.most, self.wait_s, self._slots, self._pulse = most, wait_s, slots, pulse
        self.inside = self.held_bytes = 0
        self._service_s: float | None = None
        self._busy_since_s: float | None = None  # somebody has been inside without a break

    @property
    def has_room(self) -> bool:
        return self.inside < self.most and self.held_bytes < MOST_BYTES and self.predicted_s() <= self.wait_s

    @property
    def slots(self) -> int:
        """That really run together: fewer than allowed when the pool of blocks is full."""
        pulse = self._pulse()
        return max(1, min(self._slots, pulse.running)) if pulse is not None and pulse.waiting else self._slots

    def predicted_s(self, choices: int = 1) -> float:
        """Until so many more would run."""
        ahead = self.inside + choices - self.slots
        if ahead <= 0:
            return 0.0
        service_s = self._service_s
        if service_s is None:  # none has ended yet
            service_s = 0.0 if self._busy_since_s is None else time.perf_counter() - self._busy_since_s
        return ahead / self.slots * service_s

    def enter(self, choices: int, held_bytes: int, deadline_s: float | None = None) -> None:
        """429 `queue_full` or `deadline_infeasible`, with the predicted seconds until a place; else `leave` must
        follow, once for all."""
        wait_s = self.predicted_s(choices)
        if deadline_s is not None and wait_s > deadline_s:
            raise _come_back("deadline_infeasible", f"the deadline is {deadline_s:g} s from arrival", wait_s)
        if self.inside + choices > self.most or self.held_bytes + held_bytes > MOST_BYTES:
            raise _come_back("queue_full", f"{self.inside} answers are under way (--max-queue {self.most})", wait_s)
        if wait_s > self.wait_s:
            raise _come_back("queue_full", f"--max-queue-wait is {self.wait_s:g} s", wait_s)
        if not self.inside:
            self._busy_since_s = time.perf_counter()
        self.inside += choices
        self.held_bytes += held_bytes

    def ended(self, service_s: float) -> None:
        """One choice is done; it had its slot so long. What the prediction is made of."""
        before = service_s if self._service_s is None else self._service_s
        self._service_s = before + WEIGHT * (service_s - before)

    def leave(self, choices: int, held_bytes: int) -> None:
        self.inside -= choices
        self.held_bytes -= held_bytes


def _come_back(code: str, why: str, wait_s: float) -> Refusal:
    after_s = min(max(1, math.ceil(wait_s)), MOST_RETRY_S)
    return Refusal(
        429, code, f"The predicted wait is {wait_s:.1f} s; {why}. Come back in {after_s} s.",
        headers={"Retry-After": str(after_s), "retry-after-ms": str(1000 * after_s)},
    )  # fmt: skip

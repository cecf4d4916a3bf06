"""priority: the class asked for (Request.priority, lower first), then arrival. A higher class takes the place of a
lower one that runs; ageing lets every low request end (B11).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

from ridgeline.state.sequence import Rank, Sequence

from .ageing import PATIENCE_S, Ageing, PatienceSeconds
from .policy import Policy, least_lost


@dataclass(frozen=True, slots=True)
class PriorityOptions:
    patience_s: PatienceSeconds = PATIENCE_S


class PriorityPolicy(Policy):
    """Strict classes. Each class sees those below it only through the step they share."""

    name = "priority"
    options = PriorityOptions

    def __init__(self, options: PriorityOptions = PriorityOptions()) -> None:
        self._ageing = Ageing(options.patience_s)

    def rank(self, sequence: Sequence) -> Rank:
        is_young = not self._ageing.is_aged(sequence)
        return (is_young, sequence.request.priority, sequence.arrival_s, sequence.id)

    def review(self, waiting: Many[Sequence], running: Many[Sequence], now: float) -> bool:
        return self._ageing.review(waiting, now)

    def outranks(self, newcomer: Sequence, running: Sequence) -> bool:
        """A higher class, or an aged sequence over its own class. Nobody passes the aged one, so no circle."""
        if self._ageing.is_aged(running):
            return False
        ahead = running.request.priority - newcomer.request.priority
        return ahead > 0 or (ahead == 0 and self._ageing.is_aged(newcomer))

    def victim(self, candidates: Many[Sequence]) -> Sequence:
        lowest = max(sequence.request.priority for sequence in candidates)
        return least_lost([sequence for sequence in candidates if sequence.request.priority == lowest])

    def finished(self, sequence: Sequence, reason: str) -> None:
        self._ageing.finished(sequence)

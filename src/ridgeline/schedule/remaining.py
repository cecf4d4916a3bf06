"""remaining: whoever has the fewest tokens to compute goes first, less what it has waited; those with a single one
before all others, in order of arrival (E4: shortest first with ageing, and first come first served). Predicts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ridgeline.kit.errors import UserError
from ridgeline.state.sequence import Rank, Sequence

from .policy import Policy

TOKENS_PER_S = 100.0  # ten seconds of waiting are worth a long question's difference to a short one


@dataclass(frozen=True, slots=True)
class RemainingOptions:
    ageing: Annotated[float, "tokens that a second of waiting is worth; 0: long ones may starve"] = TOKENS_PER_S


class RemainingPolicy(Policy):
    """A second of waiting counts alike for all, so between two it never turns by itself: the clock cancels."""

    name = "remaining"
    options = RemainingOptions

    def __init__(self, options: RemainingOptions = RemainingOptions()) -> None:
        if not 0.0 <= options.ageing < 1e9:
            raise UserError(f"policy remaining: ageing is {options.ageing}; it must be at least 0 tokens a second.")
        self._ageing = options.ageing

    def rank(self, sequence: Sequence) -> Rank:
        if sequence.tokens_to_compute <= 1:
            return (0, sequence.arrival_s, sequence.id)
        return (1, sequence.tokens_to_compute + self._ageing * sequence.arrival_s, sequence.id)

    def passes(self, newcomer: Sequence, running: Sequence) -> bool:
        """It computes before those with more left, and evicts nobody."""
        return running.tokens_to_compute > 1 and self.rank(newcomer) < self.rank(running)

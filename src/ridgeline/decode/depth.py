"""How deep to guess: the depth that the estimate says pays best, 0 when none pays (I2, I3).

Expected tokens of a guess of depth k at acceptance rate a: (1 - a^(k+1)) / (1 - a). Time: k steps of the proposer's
program and one of the model with k + 1 tokens a sequence, both from the estimator, at the present batch size.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

PRIOR, WEIGHT = 0.7, 4.0  # acceptance assumed before anything was judged, and how many judgements that counts for
FADE = 0.97  # what a judgement still weighs after the next one
MARGIN = 1.03  # gain below which guessing is not worth its noise
PROBE = 64  # plain tokens after which the evidence against guessing is half forgotten
CONTEXT_STEP = 256  # contexts this close cost the same


class Costs(Protocol):
    """Seconds of a step of one program; the engine's estimator on this machine."""

    def seconds(self, program: str, entries: Many[tuple[int, int]], rows: int) -> float:
        """entries: (context before, tokens)."""
        ...


@dataclass(slots=True)
class Acceptance:
    """Share of judged guesses that were accepted, recent ones first."""

    accepted: float = PRIOR * WEIGHT
    judged: float = WEIGHT
    plain: int = 0  # tokens since guessing was last tried

    @property
    def rate(self) -> float:
        return min(self.accepted / self.judged, 0.99)

    def learn(self, accepted: int, depth: int) -> None:
        """A chain of `depth` guesses of which the first `accepted` held."""
        for place in range(min(accepted + 1, depth)):
            self.accepted = self.accepted * FADE + (place < accepted)
            self.judged = self.judged * FADE + 1
        self.plain = 0

    def skip(self) -> None:
        """A token without guessing."""
        self.plain += 1
        if self.plain >= PROBE:
            self.plain = 0
            self.accepted = (self.accepted + PRIOR * self.judged) / 2


def expected_tokens(rate: float, depth: int) -> float:
    """Tokens one judgement of a chain gives on average (Leviathan et al. 2211.17192, eq. 1)."""
    return depth + 1.0 if rate >= 1.0 else (1 - rate ** (depth + 1)) / (1 - rate)


class Depths:
    """Remembers what the estimator said: asking it costs more than a step's other planning."""

    def __init__(self, costs: Costs, program: str) -> None:
        self._costs, self._program = costs, program
        self._seconds: dict[tuple[str, int, int, int], float] = {}

    def best(self, rate: float, most: int, batch: int, context: int) -> tuple[int, float]:
        """(depth, gain over plain decoding as predicted); (0, 1.0) when nothing pays."""
        plain = self.seconds("model", batch, context, 1)
        found = (0, 1.0)
        for depth in range(1, most + 1):
            gain = expected_tokens(rate, depth) * plain / self.cycle(depth, batch, context)
            if gain > max(found[1], MARGIN):
                found = (depth, gain)
        return found

    def cycle(self, depth: int, batch: int, context: int) -> float:
        """Seconds of guessing `depth` tokens and judging them."""
        guessing = depth * self.seconds(self._program, batch, context, 1) if self._program else 0.0
        return guessing + self.seconds("model", batch, context, depth + 1)

    def seconds(self, program: str, batch: int, context: int, tokens: int) -> float:
        key = (program, batch, context // CONTEXT_STEP, tokens)
        if key not in self._seconds:
            before = context // CONTEXT_STEP * CONTEXT_STEP
            self._seconds[key] = self._costs.seconds(program, [(before, tokens)] * batch, batch * tokens)
        return self._seconds[key]

"""deadline: least slack first among those that can still be in time; those that cannot come last (B12).

slack = deadline - now - predicted remaining time, from the steps seen so far. Requests without a deadline come after
those in time. Nothing is rejected here: `slack_s` is what admission control may ask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Annotated

from ridgeline.state.sequence import Rank, Sequence

from .ageing import PATIENCE_S, Ageing, PatienceSeconds
from .policy import Policy, least_lost
from .predict.predictor import PREDICTORS, LengthPredictor

NEW = 0.1  # weight of the newest step in the mean step time: the last ten steps or so


@dataclass(frozen=True, slots=True)
class DeadlineOptions:
    predict: Annotated[str, "length predictor: prompt, oracle or none"] = "prompt"
    patience_s: PatienceSeconds = PATIENCE_S


class DeadlinePolicy(Policy):
    """Times are learnt: a step's mean duration, and the fewest seconds a token has taken (a full step)."""

    name = "deadline"
    options = DeadlineOptions

    def __init__(self, options: DeadlineOptions = DeadlineOptions(), predictor: LengthPredictor | None = None) -> None:
        self.predictor = predictor or PREDICTORS.get(options.predict)()
        self._ageing = Ageing(options.patience_s)
        self._now = self._step_s = 0.0
        self._token_s = math.inf
        self._tokens = 0  # served since the last review

    def slack_s(self, sequence: Sequence, now: float) -> float:
        """Seconds to spare; negative: it will be late. inf without a deadline."""
        return self._latest_s(sequence) - now

    def _latest_s(self, sequence: Sequence) -> float:
        """The latest moment to go on from, so that the nearer of its deadlines is met."""
        request, step_s = sequence.request, self._step_s
        reading_s = (sequence.tokens_to_compute - 1) * (0.0 if math.isinf(self._token_s) else self._token_s)
        latest = math.inf
        if request.ttft_deadline_s is not None and not sequence.tokens_output:
            latest = request.ttft_deadline_s - step_s
        if request.deadline_s is not None:
            latest = min(latest, request.deadline_s - max(self.predictor.predict(sequence), 1.0) * step_s)
        return sequence.arrival_s + latest - reading_s

    def rank(self, sequence: Sequence) -> Rank:
        latest = self._latest_s(sequence)
        group = 0 if self._ageing.is_aged(sequence) else 1 if latest >= self._now else 2
        return (group, latest if group == 1 else 0.0, sequence.arrival_s, sequence.id)

    def review(self, waiting: Many[Sequence], running: Many[Sequence], now: float) -> bool:
        if self._tokens:
            elapsed_s = max(now - self._now, 0.0)
            self._step_s += NEW * (elapsed_s - self._step_s) if self._step_s else elapsed_s
            self._token_s = min(self._token_s, elapsed_s / self._tokens)
        self._now, self._tokens = now, 0
        self._ageing.review(waiting, now)
        return True

    def victim(self, candidates: Many[Sequence]) -> Sequence:
        late = [sequence for sequence in candidates if self.slack_s(sequence, self._now) < 0]
        return least_lost(late or candidates)

    def served(self, sequence: Sequence, tokens: int) -> None:
        self._tokens += tokens

    def finished(self, sequence: Sequence, reason: str) -> None:
        self._ageing.finished(sequence)
        self.predictor.finished(sequence, reason)

"""shortest: the fewest predicted tokens still to compute go first, through a length predictor; ageing lets long
requests end (B13). Without a prediction (predict=none) the order is that of arrival.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Annotated

from ridgeline.state.sequence import Rank, Sequence

from .ageing import PATIENCE_S, Ageing, PatienceSeconds
from .policy import Policy
from .predict.predictor import PREDICTORS, LengthPredictor


@dataclass(frozen=True, slots=True)
class ShortestOptions:
    predict: Annotated[str, "length predictor: prompt, oracle or none"] = "prompt"
    patience_s: PatienceSeconds = PATIENCE_S


class ShortestPolicy(Policy):
    """A wrong prediction costs time, never a token. `predictor`: one already made, in place of the named one."""

    name = "shortest"
    options = ShortestOptions

    def __init__(self, options: ShortestOptions = ShortestOptions(), predictor: LengthPredictor | None = None) -> None:
        self.predictor = predictor or PREDICTORS.get(options.predict)()
        self._ageing = Ageing(options.patience_s)

    def rank(self, sequence: Sequence) -> Rank:
        is_young = not self._ageing.is_aged(sequence)
        return (is_young, self.predictor.predict(sequence), sequence.arrival_s, sequence.id)

    def review(self, waiting: Many[Sequence], running: Many[Sequence], now: float) -> bool:
        self._ageing.review(waiting, now)
        return True

    def finished(self, sequence: Sequence, reason: str) -> None:
        self._ageing.finished(sequence)
        self.predictor.finished(sequence, reason)

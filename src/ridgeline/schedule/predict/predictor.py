"""LengthPredictor: tokens a sequence will still make. Policies order by it; nothing is ever cut short by it."""

from __future__ import annotations

from typing import Protocol

from ridgeline.kit.registry import Registry
from ridgeline.state.sequence import Sequence


class LengthPredictor(Protocol):
    """Sees a sequence, not its text. Must be cheap: it is asked for every sequence at every step."""

    def predict(self, sequence: Sequence) -> float:
        """Output tokens still to come, >= 0 and never NaN; 0 when it cannot say."""
        ...

    def finished(self, sequence: Sequence, reason: str) -> None:
        """A sequence has ended and its length is known; a cancelled one says nothing of its length."""


PREDICTORS: Registry[type[LengthPredictor]] = Registry(
    "length predictor",
    __package__,
    {"none": ".none:NonePredictor", "prompt": ".prompt:PromptPredictor", "oracle": ".oracle:OraclePredictor"},
)

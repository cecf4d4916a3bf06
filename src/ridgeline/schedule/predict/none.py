"""none: predicts nothing, so a policy that orders by prediction serves by arrival. The lower end of a comparison."""

from __future__ import annotations

from ridgeline.state.sequence import Sequence

from .predictor import LengthPredictor


class NonePredictor(LengthPredictor):
    def predict(self, sequence: Sequence) -> float:
        return 0.0

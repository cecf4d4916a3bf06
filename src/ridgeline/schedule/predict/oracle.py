"""oracle: the true length, where it is known. The upper end of a comparison: no predictor can order better."""

from __future__ import annotations

from collections.abc import Mapping

from ridgeline.state.sequence import Sequence

from .predictor import LengthPredictor


class OraclePredictor(LengthPredictor):
    """lengths: output tokens by request id, from a recorded run; else max_tokens, which is exact with ignore_stop."""

    def __init__(self, lengths: Mapping[str, int] | None = None) -> None:
        self._lengths = lengths or {}

    def predict(self, sequence: Sequence) -> float:
        request = sequence.request
        most = min(self._lengths.get(request.id, request.max_tokens), request.max_tokens)
        return float(max(most - sequence.tokens_output, 0))

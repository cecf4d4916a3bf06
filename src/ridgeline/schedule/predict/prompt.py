"""prompt: the mean output of finished requests whose prompts were about as long, less what is there already (B13)."""

from __future__ import annotations

from ridgeline.state.sequence import Sequence

from .predictor import LengthPredictor

MEMORY = 200  # finished requests that a mean forgets after; lengths drift within a day


class PromptPredictor(LengthPredictor):
    """Prompt lengths are told apart by their power of two; a class not seen yet is given the mean of all."""

    def __init__(self) -> None:
        self._means: dict[int, tuple[int, float]] = {}  # class -> (seen, mean); -1: all
        self._all = -1

    def predict(self, sequence: Sequence) -> float:
        seen = self._means.get(_class(sequence)) or self._means.get(self._all)
        if seen is None:
            return 0.0
        most = sequence.request.max_tokens - sequence.tokens_output
        return max(min(seen[1] - sequence.tokens_output, most), 1.0)

    def finished(self, sequence: Sequence, reason: str) -> None:
        if reason == "cancelled":
            return
        for key in (_class(sequence), self._all):
            seen, mean = self._means.get(key, (0, 0.0))
            seen = min(seen + 1, MEMORY)
            self._means[key] = (seen, mean + (sequence.tokens_output - mean) / seen)


def _class(sequence: Sequence) -> int:
    return sequence.tokens_prompt.bit_length()

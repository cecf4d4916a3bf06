"""Refiner: says anew, every so many tokens, how long the output of a running sequence will be (E6); and Sight, which
asks for last hidden states when they are due. A wrong prediction costs time, never a token.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.state.plan import RowResult
from ridgeline.state.sequence import Sequence


class Refiner(Protocol):
    """every: output tokens between two predictions of a sequence."""

    every: int

    def length(self, sequence: Sequence, hidden: npt.NDArray[np.float32] | None) -> float:
        """Output tokens that it will have in the end, before the next one is added; 0 when it cannot say.

        hidden: [width], after the last norm, of its last known token; None: nothing was computed (a rehearsal)."""
        ...


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What there is to tell of one look: as in TokenEvent."""

    hidden: bytes = b""
    length: float = 0.0


UNSEEN = Seen()


class Sight:
    """Of one scheduler, which calls see before it adds the chosen token."""

    def __init__(self, refiner: Refiner | None = None) -> None:
        self.refiner = refiner

    def begin(self, sequence: Sequence) -> None:
        if sequence.request.hidden_every or self.refiner is not None:
            sequence.hidden_due = 0

    def see(self, sequence: Sequence, answer: RowResult) -> Seen:
        """answer: of the row after its last known token."""
        output, asked = sequence.tokens_output, sequence.request.hidden_every
        if output < sequence.hidden_due:
            return UNSEEN
        length = 0.0
        if self.refiner is not None:
            most = sequence.request.max_tokens
            length = min(self.refiner.length(sequence, answer.hidden), most)
            sequence.length = length = max(length, output + 1) if length else 0.0
        sequence.hidden_due = output + (asked or (self.refiner.every if self.refiner is not None else 0))
        told = answer.hidden if asked else None
        if told is not None and output == 0 and sequence.hidden_sum is not None:
            told = ((sequence.hidden_sum + told) / sequence.tokens_prompt).astype(np.float32)
        return Seen(b"" if told is None else told.astype("<f4").tobytes(), length)

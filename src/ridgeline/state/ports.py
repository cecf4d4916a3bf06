"""What lower rooms need from higher ones, as protocols the higher rooms fill."""

from __future__ import annotations

from typing import Protocol

from .plan import Ints, StepPlan, StepResult
from .sequence import Sequence


class StepRunner(Protocol):
    """Executes plans. submit returns a ticket; collect blocks until that step is done."""

    def submit(self, plan: StepPlan) -> object: ...

    def collect(self, ticket: object) -> StepResult: ...


class StepObserver(Protocol):
    """Watches every step; must be cheap (it sits in the hot path)."""

    def on_step(self, plan: StepPlan, result: StepResult) -> None: ...

    def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None: ...


class SequenceMemory(Protocol):
    """Where sequences' state lives, as the scheduler sees it."""

    def fits_ever(self, tokens: int) -> bool:
        """Whether a sequence of this many tokens could be held by an empty pool."""
        ...

    def reserve(self, sequence: Sequence, tokens: int) -> bool:
        """Make room for `tokens` more computed tokens; False (and no change) when there is none."""
        ...

    def has_headroom(self, sequences: int) -> bool:
        """Whether `sequences` running sequences could each grow by one more block without evicting anyone."""
        ...

    def blocks_of(self, sequence: Sequence) -> Ints:
        """The block table (int32 array) for an Entry."""
        ...

    def holds(self, sequence: Sequence) -> int:
        """Blocks held by the sequence."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Give back everything the sequence holds."""
        ...

    def check(self) -> None:
        """Raise InvariantError unless free + held + cached = all blocks (C1)."""
        ...

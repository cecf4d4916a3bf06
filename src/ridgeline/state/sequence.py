"""Sequence: a request being made into tokens. The only mutable noun; only the scheduler writes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .event import Scored
from .plan import SequenceId
from .request import Request

Rank = tuple[float, ...]


@dataclass(slots=True, eq=False)
class Sequence:
    """Progress is a number (DESIGN §1):

    known     |----------------------------|      prompt and chosen tokens
    computed  |--------------------|              their KV is in the pool
    """

    id: SequenceId
    request: Request
    arrival_s: float
    tokens: list[int]  # known: prompt then output
    tokens_computed: int = 0
    first_scheduled_s: float | None = None
    preemptions: int = 0
    tokens_recomputed: int = 0
    rank: Rank = ()  # its place in its queue, as the policy last said; lowest first
    scored: list[Scored] = field(default_factory=list)  # prompt positions scored so far

    @property
    def tokens_known(self) -> int:
        return len(self.tokens)

    @property
    def tokens_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def tokens_output(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def tokens_to_compute(self) -> int:
        return len(self.tokens) - self.tokens_computed

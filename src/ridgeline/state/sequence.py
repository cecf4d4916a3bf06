"""Sequence: a request being made into tokens. The only mutable noun; only the scheduler writes it.

Tree: tokens somebody guesses will follow, not known yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .event import Scored
from .plan import SequenceId
from .request import Request
from .transfer import Parcel

Rank = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """Guessed tokens (I9). parents[i] < i: the place of the token that token i follows, -1: the last known token.

    laws[i]: the distribution [vocabulary] that token i was drawn from; None: it was not drawn, only named.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    laws: tuple[npt.NDArray[np.float32] | None, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def chain(cls, tokens: tuple[int, ...], laws: tuple[npt.NDArray[np.float32] | None, ...] = ()) -> Tree:
        return cls(tokens, tuple(range(-1, len(tokens) - 1)), laws or (None,) * len(tokens))

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self.tokens) - 1))

    def children(self, place: int) -> list[int]:
        """Places of the tokens that follow the one at `place`, in order; -1: the last known token."""
        return [child for child, parent in enumerate(self.parents) if parent == place]

    def path(self, place: int) -> tuple[int, ...]:
        """Places from the root to `place`, which is the last one; () for -1."""
        places: list[int] = []
        while place >= 0:
            places.append(place)
            place = self.parents[place]
        return tuple(reversed(places))


@dataclass(slots=True, eq=False)
class Sequence:
    """Progress is a number (DESIGN §1):

    known     |----------------------------|      prompt and chosen tokens
    computed  |--------------------|              their KV is in the pool
    tentative                              |---|  guessed, waiting to be judged (`tree`)

    computed_elsewhere: computed counts of the other programs that follow this sequence; they may run into the tree.
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
    tree: Tree = Tree()
    computed_elsewhere: dict[str, int] = field(default_factory=dict)
    tokens_cached: int = 0  # of its beginning that others had computed, when it was last admitted
    tokens_guessed: int = 0  # judged so far
    tokens_accepted: int = 0
    parcel: Parcel | None = None  # its beginning as another engine computed it, until it is unpacked
    hands_on: bool = False  # after the next token it is chosen, somebody else goes on with it
    hidden_sum: npt.NDArray[np.float64] | None = (
        None  # of the prompt's tokens scored so far, where their mean is wanted
    )
    hidden_due: float = math.inf  # output tokens from which its last hidden state is wanted again
    length: float = 0.0  # output tokens it will have in the end, as last predicted; 0: nobody has said (E6)
    entered_s: float = 0.0  # when it reached this engine; arrival_s is when it reached the first

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

"""ngram: what followed the last few tokens earlier in the same text will follow again (prompt lookup, I7).

Costs no model. `width` branches are the continuations of the latest different occurrences, joined to one tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ridgeline.state.plan import SequenceId
from ridgeline.state.sequence import Sequence, Tree

from ..options import number, refuse_unknown
from .proposer import Proposer

LEAST = 1  # tokens that must repeat before anything is guessed


@dataclass(slots=True)
class _Index:
    """places[n-gram]: where it was followed, latest last. `seen`: tokens indexed so far."""

    places: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    seen: int = 0


class NgramProposer:
    """longest: tokens compared at most; the longest match wins, and of equal ones the latest."""

    name = "ngram"
    program = ""
    model = ""

    def __init__(self, longest: int = 4, width: int = 1) -> None:
        self.longest, self.width = longest, width
        self._indices: dict[SequenceId, _Index] = {}

    def guess(self, sequence: Sequence, tokens: int) -> Tree:
        index = self._indices.setdefault(sequence.id, _Index())
        known = sequence.tokens
        self._learn(index, known)
        branches: list[tuple[int, ...]] = []
        for length in range(min(self.longest, len(known) - 1), LEAST - 1, -1):
            for place in reversed(index.places.get(tuple(known[-length:]), ())):
                branch = tuple(known[place : place + tokens])
                if branch and all(branch[0] != other[0] for other in branches):
                    branches.append(branch)
                if len(branches) == self.width:
                    return _join(branches)
        return _join(branches)

    def forget(self, sequence: SequenceId) -> None:
        self._indices.pop(sequence, None)

    def _learn(self, index: _Index, known: list[int]) -> None:
        """Index every n-gram that is followed by a known token."""
        for end in range(max(index.seen, 1), len(known)):
            for length in range(LEAST, min(self.longest, end) + 1):
                places = index.places.setdefault(tuple(known[end - length : end]), [])
                places.append(end)
                del places[: -2 * self.width]  # the latest few are enough
        index.seen = len(known)


def _join(branches: list[tuple[int, ...]]) -> Tree:
    """Branches with different first tokens, side by side below the root."""
    if len(branches) == 1:
        return Tree.chain(branches[0])
    tokens: list[int] = []
    parents: list[int] = []
    for branch in branches:
        for depth, token in enumerate(branch):
            parents.append(len(tokens) - 1 if depth else -1)
            tokens.append(token)
    return Tree(tuple(tokens), tuple(parents), (None,) * len(tokens))


def make(options: Mapping[str, str]) -> Proposer:
    refuse_unknown("ngram", options, ("n", "width"))
    return NgramProposer(number(options, "n", 4, 1, 16), number(options, "width", 1, 1, 8))

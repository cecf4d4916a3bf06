"""Proposer: guesses the tokens that follow a sequence. One file a proposer, one line in PROPOSERS.

A proposer either names tokens at once (`guess`), or names a program of its own that runs in the plan like any other
work (`program`): then the decoder asks for its steps and this room never runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ridgeline.kit.registry import Registry
from ridgeline.state.plan import SequenceId
from ridgeline.state.sequence import Sequence, Tree


class Proposer(Protocol):
    """program: the program that guesses ("" when none does). model: whose weights that program has. width: branches of
    its trees at most; 1: chains."""

    name: str
    width: int
    program: str
    model: str

    def guess(self, sequence: Sequence, tokens: int) -> Tree:
        """At most `tokens` deep, after all known tokens; an empty tree when there is nothing to guess from."""
        ...

    def forget(self, sequence: SequenceId) -> None:
        """The sequence has ended."""
        ...


class ProposerFactory(Protocol):
    def __call__(self, options: Mapping[str, str]) -> Proposer:
        """UserError for an option the proposer does not have or a value out of range."""
        ...


PROPOSERS: Registry[ProposerFactory] = Registry(
    "proposer",
    __package__,
    {
        "ngram": ".ngram:make",
        "draft": ".draft:make",
    },
)

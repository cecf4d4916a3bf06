"""Decoder: how many tokens every running sequence computes next, in which program, and what the answers commit.

The scheduler asks once a step for everybody, shares budget and blocks, and hands the answers back. A decoder never
sees blocks or budgets and never writes a Sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

import msgspec

from ridgeline.state.plan import Entry, RowResult, SequenceId
from ridgeline.state.sequence import Sequence, Tree

MODEL = "model"
PLAIN = Tree()


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Compute in `program` what it has not computed of the sequence's known tokens, then `tree`.

    is_choosing: a token is to be chosen after the last one; a program other than the model may just follow along.
    needs_laws: the distributions behind the choices are wanted too.
    """

    program: str = MODEL
    tree: Tree = PLAIN
    is_choosing: bool = True
    needs_laws: bool = False


class Settled(msgspec.Struct, frozen=True, gc=False):
    """tokens: chosen, in order; they become known. places: of the entry's guessed tokens that stay computed, in order.
    tree: the sequence's guesses from now on."""

    tokens: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    tree: Tree = PLAIN


class Decoder(Protocol):
    """programs: the programs it runs besides the model's, in the order they must run within a step."""

    name: str
    programs: tuple[str, ...]
    has_guesses: bool  # whether entries may hold tentative tokens

    def ask(self, running: Many[Sequence]) -> list[tuple[Ask, ...]]:
        """What each sequence wants of the next step; () to sit it out."""
        ...

    def settle(self, sequence: Sequence, ask: Ask, entry: Entry, answers: Many[RowResult]) -> Settled:
        """answers: of the choosing rows of this entry: after its last known token, then after each guessed one."""
        ...

    def cannot(self, sequence: Sequence, program: str) -> None:
        """There is no room for this program's state of the sequence; do not ask for it again."""
        ...

    def forget(self, sequence: SequenceId) -> None:
        """The sequence has ended or starts over."""
        ...


class Autoregressive:
    """One token a step, once everything known is computed."""

    name = "autoregressive"
    programs: tuple[str, ...] = ()
    has_guesses = False
    _plain = (Ask(),)

    def ask(self, running: Many[Sequence]) -> list[tuple[Ask, ...]]:
        return [self._plain] * len(running)

    def settle(self, sequence: Sequence, ask: Ask, entry: Entry, answers: Many[RowResult]) -> Settled:
        (answer,) = answers  # it asks for no guesses, so there is one choice to make
        return Settled((answer.token,))

    def cannot(self, sequence: Sequence, program: str) -> None:
        pass

    def forget(self, sequence: SequenceId) -> None:
        pass

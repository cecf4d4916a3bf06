"""StepPlan and StepResult: what one step computes, and what came out. Whole and frozen.

Structs, because every step makes some for every sequence: they take a tenth of the time of a frozen dataclass. None of
them is ever part of a cycle, so the garbage collector need not look at them (gc=False).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from .request import Sampling
from .transfer import Transfer

Ints = npt.NDArray[np.int32]
Mask = npt.NDArray[np.uint32]  # [(vocabulary + 31) // 32]: token t may be chosen when bit t % 32 of word t // 32 is set
SequenceId = int


class LogitRow(msgspec.Struct, frozen=True, gc=False):
    """One row of logits wanted from an entry.

    offset: index of the token inside the entry whose output is projected.
    position: absolute position of the token being chosen; keys the random numbers.
    target: >= 0 to score this token instead of choosing one (prompt logprobs, perplexity).
    history: (token ids, prompt length) for penalties; None when the sampling needs none.
    mask: tokens that may be chosen; None: all.
    """

    offset: int
    position: int
    sampling: Sampling
    choice: int = 0
    target: int = -1
    logprobs: int = -1  # -1: no log-probabilities wanted; k >= 0: of the chosen token and the k most likely
    law: bool = False  # also give the distribution that the token was drawn from
    hidden: bool = False  # also give the last hidden state, which the head reads
    history: tuple[tuple[int, ...], int] | None = None
    mask: Mask | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One sequence's share of a step: run `tokens` of `program` from absolute position `start`.

    blocks: a block table (int32) for every KvGroup of the program; slot s lies in block blocks[g][s // BLOCK_TOKENS],
    -1 where a retention has dropped the block (it is never read again). Shared, not copied: the memory appends to it
    only between collect and the next plan.
    slots: where tokens[0] goes in each group; (): at `start`. A slot differs from a position once a retention has
    packed what it keeps; the tokens of one entry lie in neighbouring slots.
    parents: tree (I9): the place in `tokens` of each token's parent, -1: it follows the computed context; (): a chain.
    A token sees the context, its ancestors and itself; its position is start + its depth.
    state: slot of the recurrent state (K11), -1: the program has none.
    tentative: so many of the last tokens are guesses that the answers may refuse (I1).
    given: so many of the sequence's tokens were given, not chosen; -1: not told.
    """

    sequence: SequenceId
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[Ints, ...]
    rows: tuple[LogitRow, ...] = ()
    program: str = "model"
    layers: tuple[int, int] | None = None  # None: all
    slots: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    state: int = -1
    tentative: int = 0
    given: int = -1

    def slot(self, group: int) -> int:
        """Slot of tokens[0] in a group."""
        return self.slots[group] if self.slots else self.start


BUDGET, BLOCKS, POLICY = HOLDS = ("budget", "blocks", "policy")  # why one that was tried does not run yet


class StepPlan(msgspec.Struct, frozen=True, gc=False):
    """transfers: state that is moved, in this order, before the entries run. held: who was tried and did not enter, and
    which of HOLDS kept it out; whoever waits and is not named was not tried. takes_turns: attention draws items of many
    rows and of few in turns (E1)."""

    entries: tuple[Entry, ...]
    released: tuple[SequenceId, ...] = ()  # the runner may forget these
    transfers: tuple[Transfer, ...] = ()
    held: tuple[tuple[SequenceId, str], ...] = ()
    takes_turns: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.entries

    @property
    def tokens(self) -> int:
        return sum(len(entry.tokens) for entry in self.entries)


class RowResult(msgspec.Struct, frozen=True, gc=False):
    """What one LogitRow gave. Natural logarithms; `top` is most likely first; law: [vocabulary], sums to 1; hidden:
    [width], the row the head read, after the last norm."""

    token: int
    logprob: float | None = None
    rank: int | None = None  # 0: the most likely token
    top: tuple[tuple[int, float], ...] = ()
    law: npt.NDArray[np.float32] | None = None
    hidden: npt.NDArray[np.float32] | None = None


class StepResult(msgspec.Struct, frozen=True, gc=False):
    """rows[i][j] answers plan.entries[i].rows[j]. line_ns: of the program "model"; `others`: of the other programs
    that had entries; transfer_ns: spent moving kept state before the entries ran; native_ns: inside native calls.
    share: of the machine that the step had; steps that overlap in time have shares that sum to 1 at most."""

    rows: tuple[tuple[RowResult, ...], ...]
    started_s: float
    ended_s: float
    line_ns: npt.NDArray[np.int64] | None = None  # nanoseconds by Program line
    native_calls: int = 0
    others: Mapping[str, npt.NDArray[np.int64]] = {}
    transfer_ns: int = 0
    experts: float | None = None  # distinct experts that ran in a layer, on average; None: not counted
    native_ns: int = 0
    share: float = 1.0

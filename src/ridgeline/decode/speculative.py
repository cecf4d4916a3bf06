"""Speculative: guess some tokens, let the model judge them all in one step (I1, I7, I9).

Whoever guesses with a program of its own has its steps planned like any other work; the model waits until the trees of
all who are guessing have grown, so that one step judges them together.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.state.plan import Entry, RowResult, SequenceId
from ridgeline.state.sequence import Sequence, Tree

from .decoder import MODEL, Ask, Settled
from .depth import Acceptance, Costs, Depths
from .options import number, split
from .propose.proposer import PROPOSERS, Proposer
from .verify import RULES, Keys, verify

MOST = 16  # guessed tokens deep
NODES = 48  # guessed tokens in a tree: with the known ones it fits the kernels' 64
BACKLOG = 8  # known tokens a program may be behind and still guess in this step
OPTIONS = ("k", "rule", "adapt")


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """k: depth at most. adapt: let the estimate choose the depth, 0 included."""

    k: int = 4
    rule: str = "same"
    adapt: bool = True


@dataclass(slots=True)
class _Progress:
    """depth: of the guess under way, None: not decided. is_barred: its program has no room for this sequence."""

    acceptance: Acceptance = field(default_factory=Acceptance)
    depth: int | None = None
    is_barred: bool = False


def parse(text: str) -> tuple[Proposer, SpeculationOptions]:
    """`ngram:k=4,n=3,width=2,rule=same,adapt=on` or `draft:NAME,k=4`. UserError for anything else."""
    name, given = split(text)
    own = {key: given.pop(key) for key in OPTIONS if key in given}
    rule, adapt = own.get("rule", "same"), own.get("adapt", "on")
    if rule not in RULES:
        raise UserError(f"rule is {rule!r}; known: {', '.join(RULES)}.")
    if adapt not in ("on", "off"):
        raise UserError(f"adapt is {adapt!r}; it must be on or off.")
    options = SpeculationOptions(number(own, "k", 4, 1, MOST), rule, adapt == "on")
    return PROPOSERS.get(name)(given), options


class Speculative:
    """Implements decoder.Decoder."""

    has_guesses = True

    def __init__(self, proposer: Proposer, options: SpeculationOptions, costs: Costs) -> None:
        self.name = f"speculative {proposer.name}"
        self.programs: tuple[str, ...] = (proposer.program,) if proposer.program else ()
        self._proposer, self._options = proposer, options
        self._depths = Depths(costs, proposer.program)
        self._progress: dict[SequenceId, _Progress] = {}
        self._overall = Acceptance()  # what a new sequence starts from

    # -- Decoder

    def ask(self, running: Many[Sequence]) -> list[tuple[Ask, ...]]:
        asks = [self._ask(sequence, len(running)) for sequence in running]
        is_model_due = any(ask.program == MODEL and not ask.tree for wanted in asks for ask in wanted)
        is_growing = any(ask.program != MODEL and ask.is_choosing for wanted in asks for ask in wanted)
        if is_growing and not is_model_due:
            return [tuple(ask for ask in wanted if ask.program != MODEL) for wanted in asks]
        return asks

    def settle(self, sequence: Sequence, ask: Ask, entry: Entry, answers: Many[RowResult]) -> Settled:
        progress = self._of(sequence.id)
        if ask.program != MODEL:
            if not answers:
                return Settled(tree=sequence.tree)
            tree, answer = sequence.tree, answers[-1]
            return Settled(tree=Tree.chain((*tree.tokens, answer.token), (*tree.laws, answer.law)))
        if not answers:
            return Settled(tree=sequence.tree)
        if not ask.tree:
            progress.depth = None
            progress.acceptance.skip()
            return Settled((answers[-1].token,))
        keys = Keys(sequence.request.sampling, sequence.request.choice, sequence.tokens_known)
        verdict = verify(ask.tree, answers, self._options.rule if ask.needs_laws else "same", keys)
        depth = max(len(ask.tree.path(place)) for place in range(len(ask.tree)))
        for acceptance in (progress.acceptance, self._overall):
            acceptance.learn(len(verdict.places), depth)
        progress.depth = None
        return Settled((*(ask.tree.tokens[place] for place in verdict.places), verdict.token), verdict.places)

    def cannot(self, sequence: Sequence, program: str) -> None:
        if program not in self.programs:
            raise InvariantError(f"{program!r} is not a program of {self.name}")
        self._of(sequence.id).is_barred = True

    def forget(self, sequence: SequenceId) -> None:
        self._progress.pop(sequence, None)
        self._proposer.forget(sequence)

    # -- inside

    def _ask(self, sequence: Sequence, batch: int) -> tuple[Ask, ...]:
        progress = self._of(sequence.id)
        sampling = sequence.request.sampling
        needs_laws = self._options.rule != "same" and not sampling.is_greedy and sampling.logprobs is None
        follower = self._proposer.program if self._proposer.program and not progress.is_barred else ""
        computed = sequence.computed_elsewhere.get(follower, 0) if follower else 0
        if sequence.tokens_to_compute > 1 or sequence.request.max_tokens == 0:
            behind = follower and computed < sequence.tokens_known - 1
            return (Ask(), Ask(follower, is_choosing=False)) if behind else (Ask(),)
        if progress.depth is None:
            progress.depth = self._depth(sequence, progress, batch)
        if progress.depth == 0 or (self._proposer.program and not follower):
            return (Ask(),)
        if not follower:
            tree = self._proposer.guess(sequence, progress.depth)
            return (Ask(tree=_pruned(tree), needs_laws=needs_laws and len(tree) > 0),)
        if sequence.tokens_known - computed > BACKLOG and not sequence.tree:
            return (Ask(), Ask(follower, is_choosing=False))
        grown = sequence.tree
        if len(grown) < progress.depth and not (grown and grown.tokens[-1] in sequence.request.stop_ids):
            return (Ask(follower, grown, needs_laws=needs_laws),)
        return (Ask(tree=grown, needs_laws=needs_laws),)

    def _depth(self, sequence: Sequence, progress: _Progress, batch: int) -> int:
        """Depth of the next guess; a judged guess gives one token more than it is deep."""
        request = sequence.request
        most = min(self._options.k, request.max_tokens - sequence.tokens_output - 1)
        if most <= 0 or progress.is_barred or not self._options.adapt:
            return 0 if progress.is_barred else max(most, 0)
        return self._depths.best(progress.acceptance.rate, most, batch, sequence.tokens_known)[0]

    def _of(self, sequence: SequenceId) -> _Progress:
        found = self._progress.get(sequence)
        if found is None:
            overall = self._overall
            start = Acceptance(overall.rate * overall.judged / 2, overall.judged / 2)
            found = self._progress[sequence] = _Progress(start)
        return found


def _pruned(tree: Tree) -> Tree:
    """The first NODES tokens: parents stand before their children, so that is a tree too."""
    return tree if len(tree) <= NODES else Tree(tree.tokens[:NODES], tree.parents[:NODES], tree.laws[:NODES])

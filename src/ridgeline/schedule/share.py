"""How a step's budget becomes entries: everybody who asks gets a token and a row, the rest goes in the policy's order.

Pure but for asking memory for room. Guessed tokens are taken whole or not at all: a half-judged tree is wasted work.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many

import msgspec

from ridgeline.decode.decoder import MODEL, PLAIN, Ask
from ridgeline.ops.sample import mix
from ridgeline.state.plan import Entry, LogitRow
from ridgeline.state.ports import SequenceMemory
from ridgeline.state.sequence import Sequence, Tree

from .options import ScheduleOptions
from .rows import count_rows, fit_rows, make_guess_rows, make_rows

OWN_DRAWS = 0xD2AF7  # keeps another program's draws independent of the model's, where the law needs that


class Placed(msgspec.Struct, frozen=True, gc=False):
    """An entry and what was asked for; `ask.tree` is empty when the guesses found no room."""

    sequence: Sequence
    ask: Ask
    entry: Entry


class _Budget(msgspec.Struct, gc=False):
    tokens: int
    rows: int


def share(
    asks: Many[tuple[Sequence, Ask]], options: ScheduleOptions, memories: Mapping[str, SequenceMemory], context: int,
    tokens: int,
) -> list[Placed]:  # fmt: skip
    """Entries in the order of `asks` (the policy's order), one an ask. Each program has a budget of its own; tokens:
    the model's in this step."""
    budgets = {program: _Budget(options.step_tokens, options.step_logit_rows) for program in memories}
    budgets[MODEL].tokens = tokens
    for _, ask in asks:
        budget = budgets[ask.program]
        budget.tokens -= 1
        budget.rows -= 1
    placed = []
    for sequence, ask in asks:
        program = ask.program
        budget = budgets[program]
        make = _for_model if program == MODEL else _for_other
        one = make(sequence, ask, budget, memories[program], options, context)
        placed.append(one)
        budget.tokens -= len(one.entry.tokens) - 1
        if len(one.entry.rows) > 1:
            budget.rows -= len(one.entry.rows) - 1
    return placed


def want(sequence: Sequence, options: ScheduleOptions) -> int:
    """Known tokens that the sequence would compute in a step of its own."""
    left = len(sequence.tokens) - sequence.tokens_computed
    return left if options.chunk is None else min(left, options.chunk)


def _for_model(
    sequence: Sequence, ask: Ask, budget: _Budget, memory: SequenceMemory, options: ScheduleOptions, context: int
) -> Placed:
    start, known = sequence.tokens_computed, sequence.tokens
    count = min(want(sequence, options), 1 + budget.tokens)
    if count > 1:  # one token and its row are everybody's due
        count = memory.longest(start, fit_rows(sequence, count, 1 + budget.rows))
    tree = ask.tree
    if tree.tokens and not _is_taken_whole(sequence, tree, count, budget, memory, context):
        tree, ask = PLAIN, msgspec.structs.replace(ask, tree=PLAIN)
    tokens = tuple(known[start : start + count])
    parents: tuple[int, ...] = ()
    rows = make_rows(sequence, count, law=ask.needs_laws and bool(tree.tokens))
    if tree.tokens:
        tokens += tree.tokens
        rows += make_guess_rows(sequence, count, tree, law=ask.needs_laws)
        parents = _parents(tree, count)
    entry = Entry(
        sequence.id, start, tokens, memory.blocks_of(sequence), rows, slots=memory.slots_of(sequence, start),
        parents=parents, state=memory.state_of(sequence), tentative=len(tree.tokens),
        given=len(sequence.request.prompt),
    )  # fmt: skip
    return Placed(sequence, ask, entry)


def _is_taken_whole(
    sequence: Sequence, tree: Tree, count: int, budget: _Budget, memory: SequenceMemory, context: int
) -> bool:
    """Whether there is room for all guesses behind the next `count` known tokens; their blocks are reserved then."""
    start, guesses = sequence.tokens_computed, len(tree)
    room = min(budget.tokens + 1, context - start, memory.longest(start, count + guesses)) - count
    rows = budget.rows + 1 - count_rows(sequence, count)
    is_whole = count == sequence.tokens_to_compute and guesses <= min(room, rows)
    return is_whole and memory.reserve(sequence, start, count + guesses)


def _parents(tree: Tree, count: int) -> tuple[int, ...]:
    """Of an entry of `count` known tokens and then the tree's; () for a chain."""
    if tree.is_chain:
        return ()
    return (*range(-1, count - 1), *(count + parent if parent >= 0 else count - 1 for parent in tree.parents))


def _for_other(
    sequence: Sequence, ask: Ask, budget: _Budget, memory: SequenceMemory, options: ScheduleOptions, context: int
) -> Placed:
    start = sequence.computed_elsewhere[ask.program]
    known = [*sequence.tokens, *ask.tree.tokens]
    end = len(known) if ask.is_choosing else sequence.tokens_known - 1
    count = memory.longest(start, min(end - start, 1 + budget.tokens))
    rows: tuple[LogitRow, ...] = ()
    if ask.is_choosing and start + count == end:
        sampling = sequence.request.sampling
        history = (tuple(known), sequence.tokens_prompt) if sampling.needs_history else None
        if ask.needs_laws:
            sampling = msgspec.structs.replace(sampling, seed=mix(sampling.seed ^ OWN_DRAWS) >> 1)
        rows = (LogitRow(count - 1, end, sampling, sequence.request.choice, history=history, law=ask.needs_laws),)
    entry = Entry(
        sequence.id, start, tuple(known[start : start + count]), memory.blocks_of(sequence), rows, ask.program,
        slots=memory.slots_of(sequence, start), state=memory.state_of(sequence),
        tentative=max(0, start + count - max(start, sequence.tokens_known)),
    )  # fmt: skip
    return Placed(sequence, ask, entry)

"""Constrain: masks on the rows of sequences that may not go on with every token; behind guesses, those of their path.

Guesses that the rules forbid need no mask: the row before them cannot choose them.
"""

from __future__ import annotations

import msgspec

from ridgeline.decode.decoder import MODEL
from ridgeline.state.plan import LogitRow
from ridgeline.state.ports import TokenRules
from ridgeline.state.sequence import Sequence, Tree

from .share import Placed


def constrained(placed: list[Placed], rules: TokenRules) -> list[Placed]:
    """The same entries; rows that choose, of sequences with rules, have masks."""
    return [
        _constrained(one, rules) if one.sequence.request.is_ruled and one.ask.program == MODEL else one
        for one in placed
    ]


def _constrained(placed: Placed, rules: TokenRules) -> Placed:
    entry, tree = placed.entry, placed.ask.tree
    known = len(entry.tokens) - len(tree)
    rows = tuple([_masked(row, row.offset - known, placed.sequence, tree, rules) for row in entry.rows])
    return msgspec.structs.replace(placed, entry=msgspec.structs.replace(entry, rows=rows))


def _masked(row: LogitRow, place: int, sequence: Sequence, tree: Tree, rules: TokenRules) -> LogitRow:
    """place: of the guessed token the row stands behind; below 0: none."""
    if row.target >= 0:
        return row
    path = tuple([tree.tokens[step] for step in tree.path(place)])
    return msgspec.structs.replace(row, mask=rules.mask(sequence, path))

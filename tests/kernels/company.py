"""A sequence's bits alone, and beside others in steps of any cut: the same (promise 1)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .steps import Heads, Sequence, attend, pool_for


def assert_same_alone(
    teams: Any, heads: Heads, sequences: list[Sequence], cuts: list[int], threads: int, pages: int
) -> None:
    """teams: the fixture. cuts: how many tokens a step has of a sequence, in turn. pages: of the pool."""
    alone = []
    for sequence in sequences:
        _, pool = pool_for(heads, pages)
        alone.append(attend(teams(1), heads, pool, [(dataclasses.replace(sequence), len(sequence.qkv))])[0])
    _, pool = pool_for(heads, pages)
    together: list[list[np.ndarray]] = [[] for _ in sequences]
    step = 0
    while any(s.kept < len(s.qkv) for s in sequences):
        due = [(i, s) for i, s in enumerate(sequences) if s.kept < len(s.qkv)]
        entries = [(s, min(cuts[(step + i) % len(cuts)], len(s.qkv) - s.kept)) for i, s in due]
        for (i, _), rows in zip(due, attend(teams(threads), heads, pool, entries), strict=True):
            together[i].append(rows)
        step += 1
    for rows, wanted in zip(together, alone, strict=True):
        np.testing.assert_array_equal(np.concatenate(rows).view(np.uint32), wanted.view(np.uint32))

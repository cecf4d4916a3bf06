"""BatchShape: the few numbers of a step that every operator's cost depends on. Numbers or arrays (one per step)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ridgeline.kit.cost import Number

from .kv import EVERYTHING, Reach


@dataclass(frozen=True, slots=True)
class BatchShape:
    """tokens: rows of the flattened batch. logit_rows: rows projected to the vocabulary. sequences: entries.
    pairs: query-key pairs of causal attention. kv_tokens: kept tokens read at least once (Σ context at the end).
    reached: the same two for layers that read only part of what came before: {reach: (pairs, kv_tokens)}.
    experts: distinct experts whose weights a layer reads, as counted in a step that ran; None: expected from `tokens`.
    """

    tokens: Number
    logit_rows: Number
    sequences: Number
    pairs: Number
    kv_tokens: Number
    reached: Mapping[Reach, tuple[Number, Number]] = field(default_factory=dict)
    experts: Number | None = None

    @classmethod
    def of(cls, entries: Iterable[tuple[int, int]], logit_rows: int, reaches: Iterable[Reach] = ()) -> BatchShape:
        """From (context before, tokens) of every entry."""
        entries = tuple(entries)
        counts = [count_pairs(before, tokens) for before, tokens in entries]
        reached = {}
        for reach in reaches:
            narrow = [count_pairs(before, tokens, reach) for before, tokens in entries]
            reached[reach] = (sum(p for p, _ in narrow), sum(k for _, k in narrow))
        return cls(
            tokens=sum(tokens for _, tokens in entries),
            logit_rows=logit_rows,
            sequences=len(entries),
            pairs=sum(p for p, _ in counts),
            kv_tokens=sum(k for _, k in counts),
            reached=reached,
        )

    def attention(self, reach: Reach) -> tuple[Number, Number]:
        """(pairs, kv_tokens) of a layer."""
        return (self.pairs, self.kv_tokens) if reach.is_everything else self.reached[reach]


def count_pairs(before: Number, tokens: Number, reach: Reach = EVERYTHING) -> tuple[Number, Number]:
    """(query-key pairs, kept tokens read) of `tokens` >= 1 causal rows after `before` computed ones (A9). Numbers or
    arrays alike."""
    if reach.is_recent:  # a row sees sinks and its own block: rows r and r + 1 of a block one more
        first = before // reach.block * reach.block
        inside = _triangles(before + tokens, reach.block) - _triangles(before, reach.block)
        return inside + tokens * reach.sinks, before + tokens - first + reach.sinks * (first > 0)
    before = reach.kept(before) if reach.heavy else before  # packed: everything that is kept is read
    after = before + tokens
    seen = 0 if reach.heavy else reach.budget  # the last `window` and the first `sinks`
    if seen == 0:
        return tokens * before + tokens * (tokens + 1) // 2, after
    least, most = (np.minimum, np.maximum) if isinstance(after, np.ndarray) else (min, max)
    full = least(tokens, most(after - seen, 0))  # rows at positions >= seen see exactly so many keys
    rest = tokens - full
    return full * seen + rest * before + rest * (rest + 1) // 2, least(after, seen + tokens - 1)


def _triangles(tokens: Number, block: int) -> Number:
    """1 + 2 + ... + block + 1 + 2 + ... over `tokens` rows."""
    whole, rest = tokens // block, tokens % block
    return whole * (block * (block + 1) // 2) + rest * (rest + 1) // 2

"""BatchShape: the few numbers of a step that every operator's cost depends on. Numbers or arrays (one per step)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ridgeline.kit.cost import Number


@dataclass(frozen=True, slots=True)
class BatchShape:
    """tokens: rows of the flattened batch. logit_rows: rows projected to the vocabulary. sequences: entries.
    pairs: query-key pairs of causal attention. kv_tokens: kept tokens read at least once (Σ context at the end).
    windowed: the same two for layers that read only the last `window` keys: {window: (pairs, kv_tokens)}.
    experts: distinct experts whose weights a layer reads, as counted in a step that ran; None: expected from `tokens`.
    """

    tokens: Number
    logit_rows: Number
    sequences: Number
    pairs: Number
    kv_tokens: Number
    windowed: Mapping[int, tuple[Number, Number]] = field(default_factory=dict)
    experts: Number | None = None

    @classmethod
    def of(cls, entries: Iterable[tuple[int, int]], logit_rows: int, windows: Iterable[int] = ()) -> BatchShape:
        """From (context before, tokens) of every entry."""
        entries = tuple(entries)
        counts = [count_pairs(before, tokens, 0) for before, tokens in entries]
        windowed = {}
        for window in windows:
            narrow = [count_pairs(before, tokens, window) for before, tokens in entries]
            windowed[window] = (sum(p for p, _ in narrow), sum(k for _, k in narrow))
        return cls(
            tokens=sum(tokens for _, tokens in entries),
            logit_rows=logit_rows,
            sequences=len(entries),
            pairs=sum(p for p, _ in counts),
            kv_tokens=sum(k for _, k in counts),
            windowed=windowed,
        )

    def attention(self, window: int) -> tuple[Number, Number]:
        """(pairs, kv_tokens) of a layer; window 0 reads everything."""
        return (self.pairs, self.kv_tokens) if window == 0 else self.windowed[window]


def count_pairs(before: int, tokens: int, window: int) -> tuple[int, int]:
    """(query-key pairs, kept tokens read) of `tokens` causal rows after `before` kept ones (A9)."""
    after = before + tokens
    if window == 0 or after <= window:
        return tokens * before + tokens * (tokens + 1) // 2, after
    full = min(tokens, after - window)  # rows at positions >= window see exactly `window` keys
    rest = tokens - full
    return full * window + rest * before + rest * (rest + 1) // 2, min(after, window + tokens - 1)

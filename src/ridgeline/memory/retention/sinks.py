"""sinks: the first tokens stay, because attention that has nowhere to go rests on them (StreamingLLM, C9)."""

from __future__ import annotations

from dataclasses import replace

from ridgeline.ops.kv import Reach

from .retention import RetentionPart


class SinksRetention:
    name = "sinks"
    takes_number = True
    prefix_stable = False
    needs = frozenset({"recent tokens"})
    gives: frozenset[str] = frozenset()

    def limit(self, reach: Reach, tokens: int) -> Reach:
        return replace(reach, sinks=tokens)


RETENTION: RetentionPart = SinksRetention()

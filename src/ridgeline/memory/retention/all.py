"""all: every token is kept and read."""

from __future__ import annotations

from ridgeline.ops.kv import Reach

from .retention import RetentionPart


class AllRetention:
    name = "all"
    takes_number = False
    prefix_stable = True
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()

    def limit(self, reach: Reach, tokens: int) -> Reach:
        return reach


RETENTION: RetentionPart = AllRetention()

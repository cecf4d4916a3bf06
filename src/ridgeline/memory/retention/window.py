"""window: only the last tokens are kept and read. Their blocks go back to the pool as it moves on."""

from __future__ import annotations

from dataclasses import replace

from ridgeline.ops.kv import Reach

from .retention import RetentionPart


class WindowRetention:
    name = "window"
    takes_number = True
    prefix_stable = False
    needs: frozenset[str] = frozenset()
    gives = frozenset({"recent tokens"})

    def limit(self, reach: Reach, tokens: int) -> Reach:
        return replace(reach, window=tokens)


RETENTION: RetentionPart = WindowRetention()

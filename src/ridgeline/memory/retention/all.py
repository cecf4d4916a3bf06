"""all: every token is kept and read."""

from __future__ import annotations

from ridgeline.kit.cost import Number
from ridgeline.ops.kv import Reach

from .retention import Retention


class AllRetention:
    name = "all"
    prefix_stable = True

    def reach(self, window: int) -> Reach:
        return Reach(window)

    def kept(self, tokens: Number) -> Number:
        return tokens


RETENTION: Retention = AllRetention()

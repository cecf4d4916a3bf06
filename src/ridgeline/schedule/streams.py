"""Stream: a part of the running sequences whose steps are planned, computed and committed apart from the others' (E4).

Data only. Sequences move between streams as their count of tokens to compute changes; nobody is in two.
"""

from __future__ import annotations

import msgspec

from ridgeline.state.sequence import Sequence


class Stream(msgspec.Struct, frozen=True):
    """Those with least to most tokens to compute."""

    name: str
    least: int = 1
    most: int = 1 << 62

    def takes(self, sequence: Sequence) -> bool:
        return self.least <= sequence.tokens_to_compute <= self.most


ALL = Stream("all")
MANY, ONE = STREAMS = (Stream("many", 2), Stream("one", 1, 1))

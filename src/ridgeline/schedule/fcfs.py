"""fcfs: first come, first served; the latest to arrive is the first to give its blocks back."""

from __future__ import annotations

from collections.abc import Sequence as Many

from ridgeline.state.sequence import Sequence

from .policy import Rank


class FcfsPolicy:
    name = "fcfs"

    def rank(self, sequence: Sequence) -> Rank:
        return (sequence.arrival_s, sequence.id)

    def victim(self, candidates: Many[Sequence]) -> Sequence:
        return candidates[-1]

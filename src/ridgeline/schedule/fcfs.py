"""fcfs: first come, first served; the latest to arrive is the first to give its blocks back."""

from __future__ import annotations

from collections.abc import Sequence as Many

from ridgeline.state.sequence import Rank, Sequence

from .policy import NoOptions, Policy


class FcfsPolicy(Policy):
    """The baseline: order of arrival, whatever was asked."""

    name = "fcfs"
    is_static = True

    def __init__(self, options: NoOptions = NoOptions()) -> None:
        pass

    def rank(self, sequence: Sequence) -> Rank:
        return (sequence.arrival_s, sequence.id)

    def victim(self, candidates: Many[Sequence]) -> Sequence:
        return candidates[-1]  # whoever came first ends first; by lost work an earlier one could be taken

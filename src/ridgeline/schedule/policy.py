"""Policy: who is served first and who is evicted. One file a policy, one line in POLICIES."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

from ridgeline.kit.registry import Registry
from ridgeline.state.sequence import Sequence

Rank = tuple[float, ...]


class Policy(Protocol):
    """A policy orders; the mechanism (scheduler.py) allocates. It never sees blocks, budgets or tokens' values."""

    name: str

    def rank(self, sequence: Sequence) -> Rank:
        """Lowest first. Fixed from arrival to finish; end it with sequence.id so that no two are equal."""
        ...

    def victim(self, candidates: Many[Sequence]) -> Sequence:
        """Whose blocks are taken back when there are none left. Candidates in rank order, never empty."""
        ...


POLICIES: Registry[type[Policy]] = Registry("policy", __package__, {"fcfs": ".fcfs:FcfsPolicy"})

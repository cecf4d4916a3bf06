"""fair: the tenant that got the least goes first (virtual token counters, arXiv 2401.00588), by weight (B11).

A prompt token counts 1, an output token 2, each once: work thrown away by an eviction is not the tenant's fault. A
tenant that comes back to the queue starts level with those in it: what it did not ask for is not owed to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Annotated

from ridgeline.kit.errors import UserError
from ridgeline.state.sequence import Rank, Sequence

from .policy import Policy, least_lost

PROMPT_COST, OUTPUT_COST = 1.0, 2.0


@dataclass(frozen=True, slots=True)
class FairOptions:
    weights: Annotated[str, "shares of tenants, as alice=3+bob=1; who is not named has 1"] = ""

    def by_tenant(self) -> dict[str, float]:
        """UserError for a weight that is no positive number."""
        weights = {}
        for pair in filter(None, self.weights.split("+")):
            tenant, _, written = pair.rpartition("=")
            try:
                weights[tenant] = float(written)
            except ValueError:
                weights[tenant] = math.nan
            if not 0 < weights[tenant] < math.inf:
                raise UserError(f"the weight {pair!r} of policy fair is no positive number; write tenant=weight.")
        return weights


class FairPolicy(Policy):
    """Between tenants that always wait, weighted service differs by at most a batch of their longest requests."""

    name = "fair"
    options = FairOptions

    def __init__(self, options: FairOptions = FairOptions()) -> None:
        self._weights = options.by_tenant()
        self._counters: dict[str, float] = {}  # served so far, divided by weight
        self._counted: dict[int, int] = {}  # tokens of a sequence already counted
        self._starts: dict[int, float] = {}  # what its tenant will have got when a waiting sequence's turn comes
        self._queued: set[str] = set()
        self._left = ""  # the tenant that was the last to have nobody waiting

    def rank(self, sequence: Sequence) -> Rank:
        start = self._starts.get(sequence.id, self.service(sequence.request.tenant))
        return (start, sequence.arrival_s, sequence.id)

    def service(self, tenant: str) -> float:
        """Weighted tokens the tenant has got, and what it was lifted by."""
        return self._counters.get(tenant, 0.0)

    def review(self, waiting: Many[Sequence], running: Many[Sequence], now: float) -> bool:
        self._lift({sequence.request.tenant for sequence in waiting})
        self._starts.clear()
        owed: dict[str, float] = {}
        for sequence in running:  # admitted and not yet read: it will be counted within a few steps
            tenant = sequence.request.tenant
            owed[tenant] = owed.get(tenant, self.service(tenant)) + self._reading(sequence)
        for sequence in sorted(waiting, key=lambda sequence: (sequence.arrival_s, sequence.id)):
            tenant = sequence.request.tenant
            self._starts[sequence.id] = start = owed.get(tenant, self.service(tenant))
            owed[tenant] = start + self._reading(sequence) + OUTPUT_COST / self._weights.get(tenant, 1.0)
        return True

    def _reading(self, sequence: Sequence) -> float:
        unread = max(sequence.tokens_prompt - self._counted.get(sequence.id, 0), 0)
        return PROMPT_COST * unread / self._weights.get(sequence.request.tenant, 1.0)

    def _lift(self, queued: set[str]) -> None:
        """Who comes to the queue anew is not behind those who were there, or behind the last who left."""
        stayed = [self.service(tenant) for tenant in queued & self._queued]
        if gone := self._queued - queued:
            self._left = max(sorted(gone), key=self.service)
        floor = min(stayed) if stayed else self.service(self._left)
        for tenant in queued - self._queued:
            self._counters[tenant] = max(self.service(tenant), floor)
        self._queued = queued

    def victim(self, candidates: Many[Sequence]) -> Sequence:
        most = max(self.service(sequence.request.tenant) for sequence in candidates)
        return least_lost([one for one in candidates if self.service(one.request.tenant) == most])

    def served(self, sequence: Sequence, tokens: int) -> None:
        end, prompt = sequence.tokens_computed, sequence.tokens_prompt
        start = max(end - tokens, self._counted.get(sequence.id, 0))
        if end <= start:
            return
        self._counted[sequence.id] = end
        read = max(min(end, prompt) - start, 0)
        cost = PROMPT_COST * read + OUTPUT_COST * (end - start - read)
        tenant = sequence.request.tenant
        self._counters[tenant] = self.service(tenant) + cost / self._weights.get(tenant, 1.0)

    def finished(self, sequence: Sequence, reason: str) -> None:
        self._counted.pop(sequence.id, None)
        self._starts.pop(sequence.id, None)

"""Balance: what the cluster knows of its running requests, put to the rescheduler every so many of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .journey import Journey
from .reschedule import Move, Rescheduler, Resident, Site, remaining_of


class Balance:
    """kind: what is known of lengths: load (nothing), predict (as the engines say) or oracle (max_tokens, of requests
    that ignore stops)."""

    def __init__(self, kind: str, rescheduler: Rescheduler) -> None:
        self.kind, self.rescheduler = kind, rescheduler

    def look(self, journeys: Iterable[Journey], capacities: Mapping[str, int]) -> list[Move]:
        """After a token: the moves to make now, mostly none. capacities: tokens each engine can keep, by its name."""
        running = [one for one in journeys if one.has_left and not one.is_over]
        if not self.rescheduler.is_due(len(running)):
            return []
        there: dict[str, list[Resident]] = {name: [] for name in capacities}
        for journey in running:
            at = journey.target or journey.decode
            if at in there:
                there[at].append(self._resident(journey))
        return self.rescheduler.decide({name: Site(tuple(all_), capacities[name]) for name, all_ in there.items()})

    def _resident(self, journey: Journey) -> Resident:
        request, output = journey.request, len(journey.known)
        remaining = remaining_of(
            self.kind, output, request.max_tokens, journey.length, is_exact=request.ignore_stop
        )  # fmt: skip
        return Resident(
            request.id, len(request.prompt) + output, remaining, output - journey.since,
            stays=bool(journey.target) or journey.is_cancelled,
        )  # fmt: skip

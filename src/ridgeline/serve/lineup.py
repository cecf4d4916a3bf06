"""Lineup: every model behind one port, with its engine's health and restarts. Requests name one; the first is meant
where none is named. Names come from whoever started the server, so labels made of them are bounded.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from ridgeline.kit.errors import UserError

from .health import Health
from .job import Job
from .ledger_metrics import PREFIX
from .refusal import Refusal
from .revival import Revival
from .served import Served

MOST = 16  # models
SHOWN = 80  # characters of a name that is quoted back


class Lineup:
    """Used on the event loop only."""

    def __init__(self, models: Sequence[Served]) -> None:
        """UserError for two models of one name, for none, or too many."""
        if not 0 < len(models) <= MOST:
            raise UserError(f"{len(models)} models were named; a server has 1 to {MOST} of them.")
        names = [one.name for one in models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"two models are called {twice!r}; name them as NAME=MODEL.")
        self.models = {one.name: one for one in models}
        self.first, self.limits = models[0], models[0].limits
        self.health = {one.name: Health(one) for one in models}
        self.revivals = [Revival(one, self.health[one.name]) for one in models]
        self.registry = CollectorRegistry()  # what is of no model
        self._rejected = Counter(f"{PREFIX}rejected", "Requests refused, by code.", ["code"], registry=self.registry)

    def __iter__(self) -> Iterator[Served]:
        return iter(self.models.values())

    def __len__(self) -> int:
        return len(self.models)

    def choose(self, name: str | None) -> Served:
        """404 `model_not_found`, which names those that are here."""
        found = self.first if name is None else self.models.get(name)
        if found is None:
            *most, last = (repr(known) for known in self.models)
            here = f"{', '.join(most)} and {last} are" if most else f"{last} is"
            raise Refusal(
                404, "model_not_found", f"The model {str(name)[:SHOWN]!r} is not served here; {here}.", param="model"
            )
        return found

    @property
    def jobs(self) -> Iterator[Job]:
        """Of all models; changing them meanwhile is allowed."""
        return itertools.chain.from_iterable(tuple(one.jobs) for one in self)

    def rejected(self, served: Served | None, code: str) -> None:
        """served: whose request it was; None: nobody knows yet, which is the model where there is only one."""
        served = self.first if served is None and len(self) == 1 else served
        if served is None:
            self._rejected.labels(code).inc()
        else:
            served.metrics.rejected(code)

    # -- health, of the whole port

    def drain(self) -> None:
        for health in self.health.values():
            health.is_draining = True

    @property
    def is_draining(self) -> bool:
        return self.health[self.first.name].is_draining

    @property
    def word(self) -> str:
        """ok, when every engine's loop turns."""
        return _worst(health.word for health in self.health.values())

    @property
    def life(self) -> str:
        """ok, as long as one engine is there: starting the process again would end its answers too."""
        return "engine_down" if all(one.backend.failure is not None for one in self) else "ok"

    @property
    def readiness(self) -> str:
        """ok, or why no traffic should come."""
        return _worst(health.readiness for health in self.health.values())

    # -- work

    def turning(self) -> list[Coroutine[Any, Any, None]]:
        """Hearts and accounts: what runs as long as anybody asks."""
        return [self.health[one.name].beat() for one in self] + [one.metrics.windows.run() for one in self]

    async def fresh(self) -> None:
        """Sums of every account, not older than a few seconds."""
        await asyncio.gather(*(one.metrics.windows.fresh() for one in self))

    def close(self) -> None:
        for revival in self.revivals:
            revival.close()


def _worst(words: Iterable[str]) -> str:
    found = set(words)
    return next((word for word in ("draining", "engine_down", "stalled", "busy") if word in found), "ok")

"""Router: which engine of several alike gets a request. Sees loads as numbers, never engines or blocks.

One class a way to choose, one line in ROUTERS; their names stand in engine.place.ROUTES.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Router(Protocol):
    def choose(self, loads: Mapping[str, int]) -> str:
        """loads: tokens that each engine, by name, still has to compute or keep for others. Never empty."""
        ...


class LeastRouter:
    """The least loaded; of equals the first."""

    def choose(self, loads: Mapping[str, int]) -> str:
        return min(loads, key=lambda name: loads[name])


class RoundRouter:
    """In turn, whatever they have to do."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, loads: Mapping[str, int]) -> str:
        self._turn += 1
        return list(loads)[(self._turn - 1) % len(loads)]


ROUTERS: Mapping[str, type[Router]] = {"least": LeastRouter, "round": RoundRouter}

"""Launcher: who starts engines and makes links between them; the cluster says when. Two: children.py, guests.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import RidgelineError

from .door import Greeting

OnStop = Callable[[RidgelineError], None]


class Launcher(Protocol):
    """Engines have names; a name that is started again is another engine. Thread-safe."""

    def start(self, name: str, config: EngineConfig, on_stop: OnStop) -> EngineClient:
        """It is ready to serve. Raises what kept it from it (UserError, CapacityError, EngineStopped). on_stop: as of
        EngineClient."""
        ...

    def link(self, giver: str, taker: str, greeting: Greeting) -> None:
        """A link from one to another. greeting: the giver's, slot_bytes of one block. Nothing happens when one of them
        has ended just now."""
        ...

    def forget(self, name: str) -> None:
        """It has ended."""
        ...

    def close(self) -> None:
        """All have ended, and none will be started."""
        ...

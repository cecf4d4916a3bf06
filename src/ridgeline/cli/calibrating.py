"""Calibrates our kernels before an engine starts that will decide by estimates: later it would disturb answers."""

from __future__ import annotations

from typing import Any

from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import make_place
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.perf.calibrate import calibrated

from .screen import Screen


def calibrate_first(screen: Screen, model: str, options: dict[str, Any]) -> None:
    """options: fields of EngineConfig. Seconds, once a build and number of threads; nothing where nobody asks, or where
    the model is not here yet."""
    config = EngineConfig(model, **options)
    if not decides_by_estimate(config):
        return
    try:
        described = describe(model, weights=config.weights)
        program = record(described, make_storage(config.storage), config.retention)
    except UserError:
        return  # starting it says what is wrong, or fetches it
    calibrated(
        program, config.threads, config.activations, lambda step: screen.aside(f"measuring {step} ...", style="dim")
    )


def decides_by_estimate(config: EngineConfig) -> bool:
    """Whether the engine asks how long steps will take: what to guess, how steps are cut, who gets which share."""
    place = make_place(config.place)
    return bool(config.spec or place.tbt or place.adapts or place.partition is not None or place.rebalance != "none")

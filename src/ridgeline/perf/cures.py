"""Cures: settings that would change what the observed steps cost, priced with the estimator before anybody tries them.

The same steps (the shapes the account saw) are estimated as the model is and as it would be; nothing is loaded or run.
Every gain is an estimate and carries a band. Called once a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from ridgeline.engine.config import EngineConfig
from ridgeline.kernels.packing import reads_integers
from ridgeline.kit.errors import RidgelineError
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.run.activations import DEFAULT
from ridgeline.run.count import parameters, weight_bytes
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import Machine

from .account import StepTable
from .attribution import Attribution
from .evidence import Change
from .roofline import COMPUTE, KV_BANDWIDTH, WEIGHT_BANDWIDTH

BAND = (0.6, 1.15)  # of the time an estimate saves: how far estimates were off (docs/findings/explain.md)
WORTH = 1.05
FEW_BITS = 6.0  # of a weight: below it fewer bits cost words their quality, and are not offered
FORMATS = ("native", "q8_0", "q4_1")


def price(
    config: EngineConfig, table: StepTable, program: Program, machine: Machine, wall_s: float
) -> tuple[Change, ...]:
    """Changes worth trying for these very steps, largest gain first. wall_s: that the steps lie in."""
    work = Attribution(table, program, machine)
    if not work.steps or wall_s <= 0:
        return ()
    now_s = _seconds(program, machine, work.whole, config.activations)
    step_s = float(table.step_seconds().sum())
    scale = min(2.0, max(0.5, step_s / now_s)) if now_s > 0 else 1.0  # a slower engine saves as much of its own time

    def change(cause: str, option: str, words: str, then_s: float) -> Change:
        saved_s = scale * (now_s - then_s)
        low, gain, high = (_gain(wall_s, saved_s * factor) for factor in (BAND[0], 1.0, BAND[1]))
        return Change(cause, option, words, gain, low, high)

    found = [change(*one) for one in _settings(config, program, machine, work.whole)]
    return tuple(sorted((one for one in found if one.gain >= WORTH), key=lambda one: -one.gain))


def _gain(wall_s: float, saved_s: float) -> float:
    return wall_s / max(0.05 * wall_s, wall_s - saved_s)


def _seconds(program: Program, machine: Machine, whole: BatchShape, activations: str) -> float:
    return float(np.sum(Estimator(program, machine, activations).step_seconds(whole)))


def _settings(
    config: EngineConfig, program: Program, machine: Machine, whole: BatchShape
) -> Iterator[tuple[str, str, str, float]]:
    """(cause it cures, option, words, estimated seconds of all steps)."""
    bits = 8 * weight_bytes(program) / max(1, parameters(program))
    for weights in FORMATS:
        if weights == config.weights or (weights != "native" and bits < FEW_BITS):
            continue
        other = _recorded(config, weights, config.storage)
        if other is not None and weight_bytes(other) < 0.8 * weight_bytes(program):
            words = "fewer bits a weight; quality not measured here (ridgeline eval)"
            yield WEIGHT_BANDWIDTH, f"--weights {weights}", words, _seconds(other, machine, whole, config.activations)
    for storage in ("bf16", "int8"):
        if program.kv_groups and storage != config.storage and _bytes(storage) < _bytes(config.storage):
            other = _recorded(config, config.weights, storage)
            if other is not None:
                words = "fewer bytes a kept token; quality not measured here"
                yield KV_BANDWIDTH, f"--kv {storage}", words, _seconds(other, machine, whole, config.activations)
    is_integer = any(reads_integers(weight.format) for line in program for weight in line.weights)
    if is_integer and config.activations == DEFAULT:
        words = "8 bits where no outliers are; perplexity +0.1 % on SmolLM2"
        yield COMPUTE, "--activations auto", words, _seconds(program, machine, whole, "auto")


def _bytes(storage: str) -> int:
    return int(make_storage(storage).bytes_per_token(1, 64))


def _recorded(config: EngineConfig, weights: str, storage: str) -> Program | None:
    """None where the model cannot be had so."""
    try:
        asked = msgspec.structs.replace(config, weights=weights, kv=storage)
        return record(describe(asked.model, weights=weights), make_storage(storage), asked.retention)
    except RidgelineError:
        return None

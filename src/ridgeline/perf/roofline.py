"""Roofline: what a counted cost would take at this machine's ceilings alone, and which ceiling that is (A5, A6).

Only stored bytes (weights, KV) count against memory: activations stay in the caches between lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from ridgeline.kit.cost import Cost
from ridgeline.run.levels import level_name
from ridgeline.run.machine import Machine

WEIGHT_BANDWIDTH = "weight bandwidth"
KV_BANDWIDTH = "KV bandwidth"
COMPUTE = "compute"
HOST = "host"


class Roof(msgspec.Struct, frozen=True):
    """seconds: at the ceiling alone. share: of the measured seconds (1: as fast as this machine can)."""

    name: str
    seconds: float
    share: float
    achieved_flops_per_s: float
    achieved_bytes_per_s: float
    intensity: float | None  # FLOPs per byte of weights and KV; None when nothing stored is read
    ridge: float


class OperatorPoint(msgspec.Struct, frozen=True):
    """One operator in one phase, summed over layers and steps, beside the roof over it (A5).

    kind: of its arithmetic. ceiling_flops_per_s: what the roof allows for this work; None, like intensity, roof and
    share, for operators that read nothing stored: they live in the caches, whose roof is not theirs alone.
    gap_s: seconds above the roofline time.
    """

    phase: str
    name: str
    kind: str
    seconds: float
    flops: float
    stored_bytes: float
    achieved_flops_per_s: float
    intensity: float | None = None
    ceiling_flops_per_s: float | None = None
    roof: str | None = None
    share: float | None = None
    gap_s: float | None = None


class Ceiling(msgspec.Struct, frozen=True):
    """One line of a roofline. per_s: bytes for a slope, FLOPs for a flat roof."""

    name: str
    per_s: float
    is_slope: bool
    is_over: bool  # this roof is over the points; others are drawn to compare


def ceilings(machine: Machine, set_bytes: float, kinds: Iterable[str]) -> tuple[Ceiling, ...]:
    """Roofs of a run whose weights are `set_bytes`: its read bandwidth and the peaks of `kinds`; then, to compare, the
    caches' bandwidths and the other peaks."""
    used = set(kinds)
    level = level_name(machine.caches, int(set_bytes), machine.threads, machine.fingerprint.cores)
    over = [Ceiling("memory read" if not level else f"{level} read", machine.bandwidth(set_bytes), True, True)]
    levels: dict[str, float] = {}
    for read in machine.reads:
        if read.threads == machine.threads and read.level and read.set_bytes < set_bytes:
            levels[read.level] = max(levels.get(read.level, 0.0), read.bytes_per_s)
    levels.pop(level, None)
    over += [Ceiling(f"{kind} arithmetic", rate, False, kind in used) for kind, rate in machine.flops_per_s.items()]
    return (*over, *(Ceiling(f"{level} read", rate, True, False) for level, rate in levels.items()))


def stored_bytes(cost: Cost) -> Any:
    return cost.weight_bytes + cost.kv_bytes


def intensity(cost: Cost) -> float | None:
    """FLOPs per byte of weights and KV."""
    moved = stored_bytes(cost)
    return float(cost.flops / moved) if moved else None


def roof_seconds(cost: Cost, kind: str, machine: Machine, set_bytes: float | None = None) -> Any:
    """The slower of arithmetic at its measured peak and stored bytes at the measured read bandwidth. Arrays welcome."""
    return np.maximum(cost.flops / machine.peak(kind), stored_bytes(cost) / machine.bandwidth(set_bytes))


def roof_name(cost: Cost, kind: str, machine: Machine, set_bytes: float | None = None) -> str:
    """Which ceiling binds one operator."""
    if cost.flops / machine.peak(kind) >= stored_bytes(cost) / machine.bandwidth(set_bytes):
        return COMPUTE
    return WEIGHT_BANDWIDTH if cost.weight_bytes >= cost.kv_bytes else KV_BANDWIDTH


def roofline(cost: Cost, seconds: float, machine: Machine, kind: str = "f32", set_bytes: float | None = None) -> Roof:
    """Judge one measured thing: a cost, how long it took, and the machine it ran on."""
    bound = float(roof_seconds(cost, kind, machine, set_bytes))
    per_second = 1 / seconds if seconds > 0 else 0.0
    return Roof(
        roof_name(cost, kind, machine, set_bytes),
        bound,
        bound * per_second,
        float(cost.flops) * per_second,
        float(stored_bytes(cost)) * per_second,
        intensity(cost),
        machine.ridge(kind, set_bytes),
    )

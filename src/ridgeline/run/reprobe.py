"""Reprobe: whether this machine still reaches the ceilings known of it, in about 150 ms (EXPLAIN §2, `clock`).

Owns nothing: the ceilings are machine.py's. Run it while nothing else of ours runs.
"""

from __future__ import annotations

import msgspec

from .machine import Machine
from .probe import Probe, best_probe

SET_BYTES = 80 << 20  # beyond a share of most last-level caches, and touched in 30 ms
BURSTS = 4


class Reprobe(msgspec.Struct, frozen=True):
    """Ceilings now over those known, 1: as before. read: of memory; arithmetic: f32 FMA."""

    read: float
    arithmetic: float

    @property
    def least(self) -> float:
        return min(self.read, self.arithmetic)


def reprobe(machine: Machine, probe: Probe | None = None) -> Reprobe:
    """Best of a few bursts, as the known ones are."""
    probe = probe or best_probe(machine.threads)
    probe.read_s(SET_BYTES, machine.threads)  # first touch
    read = SET_BYTES / min(probe.read_s(SET_BYTES, machine.threads) for _ in range(BURSTS))
    rates = [probe.flops_per_s("f32", machine.threads) or 0.0 for _ in range(BURSTS)]
    return Reprobe(read / machine.bandwidth(SET_BYTES), max(rates) / machine.peak("f32"))

"""Totals: sums over the pages of an account that goes on for ever; nothing in them grows but numbers.

What /metrics tells of the ledger. Every engine second of a page lies in exactly one row of `step_s` or in idle_s.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from .summary import AccountSummary
from .verdict import Verdict

HOST, BETWEEN = "host", "between operators"  # between steps; inside steps and no operator


class Window(msgspec.Struct, frozen=True):
    """One page, read. at_s: when it was closed, on the engine's clock. summary None: the engine had nothing to do."""

    at_s: float
    seconds: float
    summary: AccountSummary | None = None
    verdict: Verdict | None = None


class Totals:
    """step_s: seconds by (phase, operator); host: between steps, of no phase. bound_s: by the verdict of the page.
    energy_j: by (phase, source), above idle and, under "idle", the rest."""

    def __init__(self) -> None:
        self.step_s: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.bound_s: defaultdict[str, float] = defaultdict(float)
        self.energy_j: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.phase_s: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self.idle_s = self.flops = self.read_bytes = 0.0
        self.last: Window | None = None

    def add(self, window: Window) -> None:
        """One more page."""
        summary = window.summary
        if summary is None:
            return
        self.last = window
        self.steps += summary.steps
        self.idle_s += summary.idle_s
        operators: defaultdict[str, float] = defaultdict(float)
        for part in summary.parts:
            for phase, seconds in part.by_phase_s.items():
                self.step_s[phase, part.name] += seconds
                operators[phase] += seconds
        for one in summary.phases:
            self.phase_s[one.name] += one.seconds
            self.step_s[one.name, BETWEEN] += one.seconds - operators[one.name]
            self.flops += one.flops
            self.read_bytes += one.weight_bytes + one.kv_bytes
        self.step_s["", HOST] += summary.host_s
        if window.verdict is not None:
            self.bound_s[window.verdict.cause] += summary.wall_s
        if (energy := summary.energy) is not None:
            source = "estimate" if energy.is_estimated else "meter"
            for phase, joules in energy.by_phase_j.items():
                self.energy_j[phase, source] += joules
            self.energy_j["idle", source] += energy.gross_j - sum(energy.by_phase_j.values())

    @property
    def engine_s(self) -> float:
        """Busy: steps and what is between them."""
        return sum(self.step_s.values())

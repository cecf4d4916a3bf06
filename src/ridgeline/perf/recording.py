"""Recording: one read of an account, whole: the ledger, the trace and the exported rows are all made from it (A2).

So what `ledger()`, `--trace-out` and `--ledger-out` say are sums of the same rows. Read late; measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from ridgeline.ops.program import Program
from ridgeline.run.machine import Machine

from .account import StepTable
from .intervals import ClientNote, Segments, Steps, segments_of
from .ledger import RunLedger, make_ledger
from .timeline import Timeline


@dataclass(frozen=True)
class Life:
    """A request that was seen whole. segments: its intervals, in order; engines: by name, where each of them was."""

    request: str
    reason: str
    segments: Segments
    engines: tuple[str, ...]


class Recorded(Protocol):
    """A run on one engine (Recording) or on several (joined.JoinedRecording)."""

    @property
    def engines(self) -> Mapping[str, Recording]:
        """By name; "" when there is only one."""
        ...

    @property
    def ledger(self) -> RunLedger: ...

    @property
    def about(self) -> Mapping[str, Any]: ...

    def lives(self) -> list[Life]: ...


@dataclass(frozen=True)
class Recording:
    """table: with its timeline. power: (seconds on the engine's clock, watts), as a meter gave them; () without one.

    about: what the reader should know of the run (model, threads, commit), plain JSON types.
    """

    table: StepTable
    notes: Mapping[str, ClientNote]
    program: Program | None = None
    machine: Machine | None = None
    power: tuple[tuple[float, float], ...] = ()
    block_tokens: int = 16
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def ledger(self) -> RunLedger:
        return make_ledger(self.table, self.notes, self.program, self.machine)

    @property
    def timeline(self) -> Timeline | None:
        """None when nothing ran."""
        timeline = self.table.timeline
        return timeline if timeline is not None and len(timeline.step_rows()) else None

    @cached_property
    def steps(self) -> Steps | None:
        return None if self.timeline is None else Steps.of(self.table, self.timeline)

    @property
    def engines(self) -> Mapping[str, Recording]:
        return {"": self}

    def lives(self) -> list[Life]:
        if self.timeline is None or self.steps is None:
            return []
        known = [one for one in self.timeline.ended if one.arrival_s >= self.timeline.since_s]
        found = [(one, segments_of(self.steps, one, self.notes.get(one.request))) for one in known]
        return [Life(one.request, one.reason, segments, ("",) * len(segments)) for one, segments in found]

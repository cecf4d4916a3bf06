"""SplitCosts: how long a step takes with a share of the machine, alone or beside another (E4). Asks the estimator.

A line takes the longer of its arithmetic and its bytes. Arithmetic goes with the share as far as it was measured to;
bytes are read at what that share of the threads can draw, and at no more than the other step leaves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.state.plan import StepPlan

from .activations import DEFAULT
from .cost_runner import batch_shape
from .count import weight_bytes
from .estimate import Estimator
from .machine import Machine

Doubles = npt.NDArray[np.float64]
Step = StepPlan | BatchShape  # planned, or what a planned one would be like


class Curve(NamedTuple):
    """Speed with a share of a resource's users, as a share of the speed with all: straight up to `knee`, then slower.

    at_knee: speed there, at least `knee`: more users help, but each less than the one before."""

    knee: float
    at_knee: float

    def speed(self, share: float) -> float:
        if share <= self.knee:
            return share * self.at_knee / self.knee
        return self.at_knee + (share - self.knee) * (1.0 - self.at_knee) / (1.0 - self.knee)


LINE = Curve(0.5, 0.5)


class Other(NamedTuple):
    """The step that runs at the same time."""

    plan: Step
    share: float


class _Work(NamedTuple):
    arithmetic: Doubles  # [lines] seconds with the whole machine
    reading: Doubles
    rest: Doubles
    fixed_s: float

    def seconds(self, compute: float, memory: float) -> float:
        """compute, memory: speeds, as shares of the whole machine's."""
        lines = np.maximum(self.arithmetic / compute, self.reading / memory) + self.rest / compute
        return float(lines.sum()) + self.fixed_s


class SplitCosts:
    """machine: asked when the first cost is wanted. compute, memory: curves of this machine, when not its measured
    ones."""

    def __init__(
        self, program: Program, machine: Callable[[], Machine], activations: str = DEFAULT, *,
        compute: Curve | None = None, memory: Curve | None = None,
    ) -> None:  # fmt: skip
        self._program, self._activations = program, activations
        self._machine = functools.cache(machine)
        self._estimator: Estimator | None = None
        self._curves = (compute, memory)
        self._known: dict[int, tuple[Step, _Work]] = {}

    @property
    def estimator(self) -> Estimator:
        if self._estimator is None:
            self._estimator = Estimator(self._program, self._machine(), self._activations)
        return self._estimator

    def seconds(self, plans: Many[StepPlan], stream: int, share: float) -> float:
        """Of the step of plans[stream] beside the other one, when stream 0 has this share."""
        shares = (share, 1.0 - share)
        return self.under(plans[stream], shares[stream], Other(plans[1 - stream], shares[1 - stream]))

    def shape(self, entries: Many[tuple[int, int]]) -> BatchShape:
        """Of a step of so many sequences, each (context before, tokens), that choose a token each."""
        return BatchShape.of(entries, len(entries), self._program.reaches)

    def under(self, plan: Step, share: float, other: Other | None = None) -> float:
        """Seconds of a step with a share of the machine, alone or beside another step."""
        compute, memory = self.curves()
        draws = memory.speed(share)
        if other is not None:
            # Of the whole bandwidth the other draws what its bytes over its time come to; it is never pushed aside.
            beside = self._work(other.plan)
            taken_s = beside.seconds(compute.speed(other.share), memory.speed(other.share))
            left = 1.0 - float(beside.reading.sum()) / max(taken_s, 1e-12)
            draws = min(draws, max(left, share))
        return self._work(plan).seconds(compute.speed(share), draws)

    def curves(self) -> tuple[Curve, Curve]:
        """Of arithmetic and of reading: as measured with one thread and with all."""
        machine, (compute, memory) = self.estimator.machine, self._curves
        if machine.threads > 1 and machine.source == "native":
            knee = 1.0 / machine.threads
            ones = [read.bytes_per_s for read in machine.reads if read.threads == 1]
            if memory is None and ones:
                set_bytes = weight_bytes(self._program)
                memory = _measured(knee, machine.bandwidth(set_bytes, 1) / machine.bandwidth(set_bytes))
            if compute is None and "f32" in machine.flops_per_s_one_thread:
                compute = _measured(knee, machine.flops_per_s_one_thread["f32"] / machine.peak("f32"))
        return compute or LINE, memory or LINE

    def _work(self, plan: Step) -> _Work:
        found = self._known.get(id(plan))
        if found is not None and found[0] is plan:
            return found[1]
        shape = plan if isinstance(plan, BatchShape) else batch_shape(plan, self._program.reaches)
        lines = self.estimator.demands(shape)
        work = _Work(*lines, self.estimator.machine.host_s)
        while len(self._known) >= 2:  # the plans at hand; a plan is asked for at several shares
            del self._known[next(iter(self._known))]
        self._known[id(plan)] = (plan, work)
        return work


def _measured(knee: float, at_knee: float) -> Curve:
    """One thread's speed lies between its fair part and everything."""
    return Curve(knee, min(1.0, max(knee, at_knee)))

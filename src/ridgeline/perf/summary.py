"""From what an Account saw to what a person asks: seconds, work and roofs by phase and by operator (A1, A3, A6).

Pure arithmetic on a StepTable, a Program and a Machine; measures nothing. Mixed steps are split by attribution.py.
"""
# size: summarise has 61 lines, one a field of what it makes

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from ridgeline.ops.program import Program
from ridgeline.run.activations import DEFAULT
from ridgeline.run.count import weight_bytes
from ridgeline.run.estimate import Estimator, compute_kind
from ridgeline.run.machine import Machine

from .account import StepTable
from .attribution import ROOFS, Attribution, Doubles, PartWork, PhaseWork
from .energy import EnergySummary, Run, Work, energy
from .meters import Interval
from .phases import PHASES
from .process_counters import ProcessCounters
from .roofline import HOST, OperatorPoint, roof_name, stored_bytes

CALM = 0.25  # as calibration does: on a shared machine a run is slowed again and again, and never sped up


class PhaseSummary(msgspec.Struct, frozen=True):
    """One phase. Bytes are those that had to move; intensity: FLOPs per byte of weights and KV.

    roof: the ceiling with the largest share of roof_s. roof_share = roof_s / seconds: 1 is as fast as this machine can.
    """

    name: str
    steps: int
    tokens: int
    seconds: float
    tokens_per_s: float
    flops: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    intensity: float
    achieved_flops_per_s: float
    achieved_bytes_per_s: float
    roof: str
    roof_s: float
    roof_share: float
    ridge: float
    predicted_s: float
    measured_per_predicted: float


class PartSummary(msgspec.Struct, frozen=True):
    """One operator, summed over layers. share: of the time of all steps. Empty seconds: the lines were not timed."""

    name: str
    seconds: float
    share: float
    by_phase_s: dict[str, float]
    flops: float
    weight_bytes: float
    kv_bytes: float
    roof_share: float
    expected_s: dict[str, float] = {}  # what the estimator gives it, by the ceiling that sets its pace


class OtherSummary(msgspec.Struct, frozen=True):
    """A program besides the model: its work and its time, which lies inside the steps."""

    name: str
    steps: int
    tokens: int
    seconds: float
    share: float


class AccountSummary(msgspec.Struct, frozen=True):
    """wall_s = step_s + host_s + unshared_s + idle_s + residual_s; step_s = operators_s + between_operators_s if timed.
    unshared_s: a step ran with its share of the machine, and the rest of it had none.

    bound: the roof of the phase that took longest, or "host" when steps are not the larger part of the busy time.
    """

    phases: tuple[PhaseSummary, ...]
    parts: tuple[PartSummary, ...]
    steps: int
    mixed_steps: int
    wall_s: float
    step_s: float
    host_s: float
    idle_s: float
    residual_s: float
    operators_s: float
    between_operators_s: float
    predicted_s: float
    measured_per_predicted: float
    native_calls: int
    bound: str
    bandwidth_bytes_per_s: float
    peak_flops_per_s: dict[str, float]
    finished: dict[str, int]
    preemptions: int
    tokens_recomputed: int
    others: tuple[OtherSummary, ...] = ()
    tokens_guessed: int = 0
    tokens_accepted: int = 0
    tokens_cached: int = 0
    transfers_s: float = 0.0
    memory: dict[str, Any] = {}  # state.ports.SequenceMemory.report
    choices: dict[str, Any] = {}  # schedule.choose.Chooser.report; {}: the place was chosen by whoever asked
    process: ProcessCounters | None = None  # of the engine's process, over the same time
    sequences_mean: float = 0.0  # of a step
    sequences_most: int = 0
    kv_tokens_most: int = 0  # kept tokens that one step read
    calm_per_predicted: float = 0.0  # measured over predicted in the calmest part (CALM) of the time: others only slow
    share_rule: str = "share: v1"
    energy: EnergySummary | None = None  # None: nothing ran
    points: tuple[OperatorPoint, ...] = ()  # every timed operator in every phase, the longest first
    set_bytes: int = 0  # of the weights, which decide the read bandwidth that is the roof
    unshared_s: float = 0.0

    def phase(self, name: str) -> PhaseSummary | None:
        return next((phase for phase in self.phases if phase.name == name), None)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types, under the same names."""
        return dict(msgspec.to_builtins(self))


def summarise(
    table: StepTable, program: Program, machine: Machine, metered: Interval | None = None, activations: str = DEFAULT
) -> AccountSummary:
    """Everything about a run that its steps can tell. An empty run gives zeros, never an error.

    metered: what a meter said of the same time; None: there is none, and energy is estimated. activations: how integer
    products read them; only what is predicted depends on it.
    """
    work = Attribution(table, program, machine, activations)
    times, step_s = table.step_times(), table.step_seconds()
    predicted = _predicted(work, Estimator(program, machine, activations))
    ridge = machine.ridge(_linear_kind(program, machine), weight_bytes(program))
    phases = tuple(
        _phase(name, phase, split, step_s, predicted, ridge)
        for name, phase, split in zip(PHASES, work.phases, work.split, strict=True)
        if phase.shape.tokens.any()
    )
    busy_s, predicted_s, operators_s = float(step_s.sum()), float(predicted.sum()), float(table.lines().sum() * 1e-9)
    wall_s = float(times[:, 1].max() - (table.begun_s or times[:, 0].min())) if work.steps else 0.0
    longest = max(phases, key=lambda phase: phase.seconds, default=None)
    return AccountSummary(
        phases=phases,
        parts=tuple(_part(name, part, busy_s) for name, part in work.parts.items()),
        steps=work.steps,
        mixed_steps=work.mixed_steps,
        wall_s=wall_s,
        step_s=busy_s,
        host_s=table.host_s - table.unshared_s,
        idle_s=table.idle_s,
        residual_s=wall_s - busy_s - table.host_s - table.idle_s,
        operators_s=operators_s,
        between_operators_s=busy_s - operators_s if operators_s else 0.0,
        predicted_s=predicted_s,
        measured_per_predicted=busy_s / predicted_s if predicted_s else 0.0,
        native_calls=table.native_calls,
        bound=HOST if table.host_s > busy_s else longest.roof if longest else "nothing ran",
        bandwidth_bytes_per_s=machine.bandwidth(weight_bytes(program)),
        peak_flops_per_s=dict(machine.flops_per_s),
        finished=table.finished,
        preemptions=table.preemptions,
        tokens_recomputed=table.tokens_recomputed,
        others=tuple(
            OtherSummary(name, work.steps, work.tokens, work.seconds, work.seconds / busy_s if busy_s else 0.0)
            for name, work in table.others.items()
        ),
        tokens_guessed=table.guessed,
        tokens_accepted=table.accepted,
        tokens_cached=table.tokens_cached,
        transfers_s=table.transfer_ns * 1e-9,
        memory=table.memory,
        choices=table.choices,
        energy=energy(_run(table, work, phases, wall_s), machine, metered) if work.steps else None,
        points=_points(work.parts, machine, weight_bytes(program)),
        set_bytes=weight_bytes(program),
        unshared_s=table.unshared_s,
        process=table.process,
        sequences_mean=float(np.mean(work.whole.sequences)) if work.steps else 0.0,
        sequences_most=int(np.max(work.whole.sequences)) if work.steps else 0,
        kv_tokens_most=int(np.max(work.whole.kv_tokens)) if work.steps else 0,
        calm_per_predicted=_calm(step_s + table.host_s / max(1, work.steps), predicted),
    )


def _predicted(work: Attribution, estimator: Estimator) -> Any:
    """Seconds, [steps]."""
    return np.asarray(estimator.step_seconds(work.whole), float) if work.steps else np.zeros(0)


def _calm(measured_s: Any, predicted_s: Any) -> float:
    """The ratio of both below which CALM of the predicted time was done; 0 when nothing was."""
    if not len(predicted_s) or not (predicted_s > 0).all():
        return 0.0
    ratios = measured_s / predicted_s
    order = np.argsort(ratios)
    done = np.cumsum(predicted_s[order])
    return float(ratios[order][np.searchsorted(done, CALM * done[-1])])


def _run(table: StepTable, work: Attribution, phases: tuple[PhaseSummary, ...], wall_s: float) -> Run:
    """What energy rests on. Output tokens: rows that chose a token, less guesses that did not hold."""
    works = [
        Work(
            phase, name, float(part.measured_s[at]),
            {kind: float(flops[at]) for kind, flops in part.flops.items()}, float(part.moved_bytes[at]),
        )
        for name, part in work.parts.items()
        for at, phase in enumerate(PHASES)
        if part.measured_s[at] > 0 or part.moved_bytes[at] > 0
    ]  # fmt: skip
    prompt_tokens = sum(phase.tokens for phase in phases if phase.name == "prefill")
    output_tokens = int(np.sum(work.whole.logit_rows)) - table.guessed + table.accepted
    return Run(
        works, {phase.name: phase.seconds for phase in phases}, table.host_s, wall_s, output_tokens, prompt_tokens,
        sum(table.finished.values()),
    )  # fmt: skip


def _linear_kind(program: Program, machine: Machine) -> str:
    """The arithmetic of the linear operators: their slowest kind gives the ridge that is printed."""
    kinds = {compute_kind(line) for line in program if line.op.kind == "linear"} or {"f32"}
    return min(kinds, key=machine.peak)


def _phase(
    name: str, work: PhaseWork, split: Doubles, step_s: Doubles, predicted: Doubles, ridge: float
) -> PhaseSummary:
    seconds, predicted_s, roof_s = float(split @ step_s), float(split @ predicted), float(work.roof_s.sum())
    cost, tokens = work.cost, int(work.shape.tokens.sum())
    moved = cost.weight_bytes + cost.kv_bytes
    per_s = 1 / seconds if seconds > 0 else 0.0
    return PhaseSummary(
        name=name,
        steps=int((work.shape.tokens > 0).sum()),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens * per_s,
        flops=cost.flops,
        weight_bytes=cost.weight_bytes,
        kv_bytes=cost.kv_bytes,
        activation_bytes=cost.activation_bytes,
        intensity=cost.flops / moved if moved else 0.0,
        achieved_flops_per_s=cost.flops * per_s,
        achieved_bytes_per_s=moved * per_s,
        roof=ROOFS[int(work.roof_s.argmax())],
        roof_s=roof_s,
        roof_share=roof_s * per_s,
        ridge=ridge,
        predicted_s=predicted_s,
        measured_per_predicted=seconds / predicted_s if predicted_s else 0.0,
    )


def _points(parts: dict[str, PartWork], machine: Machine, set_bytes: int) -> tuple[OperatorPoint, ...]:
    found = []
    for name, work in parts.items():
        kind = max(work.flops, key=lambda kind: float(work.flops[kind].sum()), default="f32")
        for at, phase in enumerate(PHASES):
            seconds, roof_s, cost = float(work.measured_s[at]), float(work.phase_roof_s[at]), work.by_phase[at]
            if seconds <= 0:
                continue
            moved = float(stored_bytes(cost))
            point = OperatorPoint(phase, name, kind, seconds, float(cost.flops), moved, float(cost.flops) / seconds)
            if work.is_stored and moved and roof_s and cost.flops:
                point = msgspec.structs.replace(
                    point, intensity=float(cost.flops) / moved, ceiling_flops_per_s=float(cost.flops) / roof_s,
                    roof=roof_name(cost, kind, machine, set_bytes), share=roof_s / seconds, gap_s=seconds - roof_s,
                )  # fmt: skip
            found.append(point)
    return tuple(sorted(found, key=lambda point: -point.seconds))


def _part(name: str, work: PartWork, busy_s: float) -> PartSummary:
    seconds = float(work.measured_s.sum())
    return PartSummary(
        name=name,
        seconds=seconds,
        share=seconds / busy_s if busy_s > 0 else 0.0,
        by_phase_s={phase: float(s) for phase, s in zip(PHASES, work.measured_s, strict=True) if s > 0},
        flops=work.cost.flops,
        weight_bytes=work.cost.weight_bytes,
        kv_bytes=work.cost.kv_bytes,
        roof_share=work.roof_s / seconds if seconds > 0 else 0.0,
        expected_s={roof: float(s) for roof, s in zip(ROOFS, work.expected_s, strict=True) if s > 0},
    )

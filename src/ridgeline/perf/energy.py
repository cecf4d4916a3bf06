"""Energy: joules by phase, operator and token, from a meter or, where there is none, estimated and said to be (A13).

Owns the power model (energy.json: coefficients, sources, band) and the rule by which a meter's joules are shared.
Refuses to give an estimate without its band, or to repair what a meter got wrong: such an interval is void.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ridgeline.run.machine import Machine

from .meters import Interval
from .phases import DECODE, PHASES

RULE = "energy: v1"
HOST = "host"  # between steps
GAPS = "between operators"
ESTIMATE = "estimate"

Joules = dict[str, dict[str, float]]  # by phase, by operator


class PowerModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a core (or a device) of a class draws. static_w: always; active_w: on top while it works at all.

    j_per_flop by number kind, j_per_byte of stored weights and KV. band: factors around every figure made from it.
    basis: "literature" (from data sheets, no run of ours or others behind the band) or "fitted".
    """

    name: str
    match: tuple[str, ...]
    scope: str
    per: str
    static_w: float
    active_w: float
    j_per_flop: dict[str, float]
    j_per_byte: float
    band: tuple[float, float]
    basis: str
    fitted_on: int
    held_out: int
    sources: tuple[str, ...]

    def joules(self, units_s: float, flops: Mapping[str, float], moved_bytes: float) -> float:
        """Above static power: `units_s` core-seconds (or device-seconds) at work, FLOPs by kind, stored bytes moved."""
        arithmetic = sum(count * self.j_per_flop.get(kind, self.j_per_flop["f32"]) for kind, count in flops.items())
        return self.active_w * units_s + arithmetic + self.j_per_byte * moved_bytes


@functools.cache
def power_models() -> tuple[PowerModel, ...]:
    """Every class in energy.json."""
    return msgspec.json.decode(Path(__file__).with_name("energy.json").read_bytes(), type=tuple[PowerModel, ...])


def power_model(cpu: str) -> PowerModel:
    """The class of a processor by its name; the first one (server cores) when no name fits."""
    models = power_models()
    return next((model for model in models if any(word in cpu.lower() for word in model.match)), models[0])


class Work(msgspec.Struct, frozen=True):
    """What one operator did for one phase. seconds: measured, 0 where lines were not timed."""

    phase: str
    part: str
    seconds: float
    flops: dict[str, float]  # by number kind
    moved_bytes: float


class Run(msgspec.Struct, frozen=True):
    """The account's figures that energy rests on. phase_s: step seconds by phase, what lies between operators in it."""

    works: Sequence[Work]
    phase_s: dict[str, float]
    host_s: float
    wall_s: float
    output_tokens: int
    prompt_tokens: int
    requests: int


class EnergySummary(msgspec.Struct, frozen=True):
    """Joules of a run. net = gross - idle; phases and operators share the net, and sum to it exactly.

    source: "estimate" or "meter(<name>)"; is_estimated: no meter stands behind any figure here, and `band` (factors)
    belongs to each. idle_source: "measured" (before and after, engine loaded), or "estimate".
    by_phase_j: also "host" (between steps). tokens: output tokens; prefill's joules are in, and shown apart.
    """

    source: str
    is_estimated: bool
    band: tuple[float, float]
    scope: str
    model: str
    wall_s: float
    gross_j: float
    idle_j: float
    net_j: float
    idle_source: str
    by_phase_j: dict[str, float]
    by_part_j: Joules
    mean_w: float
    output_tokens: int
    j_per_token: float | None
    gross_j_per_token: float | None
    j_per_prompt_token: float | None
    j_per_request: float | None
    tokens_per_j: float | None
    edp_js: float
    peak_w: float | None = None
    resolution_s: float | None = None
    void: str = ""  # why no figure of the meter's holds
    rule: str = RULE

    @property
    def low_j(self) -> float:
        return self.net_j * self.band[0]

    @property
    def high_j(self) -> float:
        return self.net_j * self.band[1]


def modelled(run: Run, model: PowerModel, threads: int) -> Joules:
    """Joules above idle by phase and operator, as the power model has them; what no line took is GAPS, then HOST."""
    joules: Joules = {phase: {} for phase in run.phase_s}
    timed: dict[str, float] = dict.fromkeys(run.phase_s, 0.0)
    for work in run.works:
        parts = joules.setdefault(work.phase, {})
        spent = model.joules(work.seconds * threads, work.flops, work.moved_bytes)
        parts[work.part] = parts.get(work.part, 0.0) + spent
        timed[work.phase] = timed.get(work.phase, 0.0) + work.seconds
    for phase, seconds in run.phase_s.items():
        rest_s = max(0.0, seconds - timed.get(phase, 0.0))
        joules[phase][GAPS] = model.joules(rest_s * threads, {}, 0.0)
    joules[HOST] = {HOST: model.joules(run.host_s, {}, 0.0)}  # one core plans
    return joules


def shared(total_j: float, weights: Joules) -> Joules:
    """`total_j` over phase and operator in proportion to the model's joules: they sum to it (identity of EXPLAIN 8)."""
    weight = sum(sum(parts.values()) for parts in weights.values())
    if weight <= 0:
        return {HOST: {HOST: total_j}}
    return {
        phase: {part: total_j * joules / weight for part, joules in parts.items()} for phase, parts in weights.items()
    }


def energy(run: Run, machine: Machine, interval: Interval | None = None) -> EnergySummary:
    """Joules of a run: the meter's where `interval` holds any, shared by the model; else the model's own, banded.

    A void interval is never replaced by a guess without saying so: the estimate stands, and `void` says why.
    """
    model = power_model(machine.fingerprint.cpu)
    weights = modelled(run, model, machine.threads)
    static_w = model.static_w * (machine.threads if model.per == "core" else 1)
    if interval is None or interval.void:
        net_j = sum(sum(parts.values()) for parts in weights.values())
        idle_j, wall_s = static_w * run.wall_s, run.wall_s
        return _summary(run, model, weights, (net_j + idle_j, idle_j, wall_s), interval)
    idle_w = static_w if interval.idle_w is None else interval.idle_w
    idle_j = idle_w * interval.seconds
    net_j = interval.joules - idle_j
    if net_j < 0:
        reason = f"the meter gave {interval.joules:.3g} J, less than idle power alone ({idle_j:.3g} J)"
        return energy(run, machine, msgspec.structs.replace(interval, void=reason))
    return _summary(run, model, shared(net_j, weights), (interval.joules, idle_j, interval.seconds), interval)


def _summary(
    run: Run, model: PowerModel, split: Joules, totals: tuple[float, float, float], interval: Interval | None
) -> EnergySummary:
    gross_j, idle_j, wall_s = totals
    net_j = gross_j - idle_j
    is_estimated = interval is None or bool(interval.void)
    by_phase = {phase: sum(parts.values()) for phase, parts in split.items() if sum(parts.values()) > 0}
    metered = None if is_estimated else interval

    def each(joules: float, count: int) -> float | None:
        return joules / count if count else None

    return EnergySummary(
        source=ESTIMATE if metered is None else f"meter({metered.source})",
        is_estimated=is_estimated,
        band=model.band if is_estimated else (1.0, 1.0),
        scope=model.scope if metered is None else metered.scope,
        model=model.name,
        wall_s=wall_s,
        gross_j=gross_j,
        idle_j=idle_j,
        net_j=net_j,
        idle_source="measured" if metered is not None and metered.idle_w is not None else ESTIMATE,
        by_phase_j=by_phase,
        by_part_j={name: {p: j for p, j in split[name].items() if j > 0} for name in by_phase},
        mean_w=gross_j / wall_s if wall_s > 0 else 0.0,
        output_tokens=run.output_tokens,
        j_per_token=each(net_j, run.output_tokens),
        gross_j_per_token=each(gross_j, run.output_tokens),
        j_per_prompt_token=each(by_phase.get("prefill", 0.0), run.prompt_tokens),
        j_per_request=each(net_j, run.requests),
        tokens_per_j=run.output_tokens / net_j if net_j > 0 else None,
        edp_js=net_j * wall_s,
        peak_w=None if metered is None else metered.peak_w,
        resolution_s=None if metered is None else metered.resolution_s,
        void="" if interval is None else interval.void,
    )  # fmt: skip


def by_request(summary: EnergySummary, cost_ns: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Net joules by request, by the cost ledger's nanoseconds {request: {phase: ns}}; with "unowned" they sum to net.

    Within a phase a request takes its share of that phase's time (guessing ahead is decode's). The host's joules, and
    those of a phase that nobody is said to have caused, follow each one's whole cost.
    """
    costs = {request: _by_phase(phases) for request, phases in cost_ns.items()}
    joules = dict.fromkeys(costs, 0.0)
    unowned = 0.0
    for phase, spent in summary.by_phase_j.items():
        owned = {request: phases.get(phase, 0) for request, phases in costs.items()}
        if not any(owned.values()):
            owned = {request: sum(phases.values()) for request, phases in costs.items()}
        total = sum(owned.values())
        if not total:
            unowned += spent
            continue
        for request, ns in owned.items():
            joules[request] += spent * ns / total
    return joules | ({"unowned": unowned} if unowned else {})


def _by_phase(cost_ns: Mapping[str, int]) -> dict[str, int]:
    """The ledger's finer activities under the phases that energy knows."""
    phases: dict[str, int] = {}
    for activity, ns in cost_ns.items():
        phase = activity if activity in PHASES else PHASES[DECODE]
        phases[phase] = phases.get(phase, 0) + ns
    return phases

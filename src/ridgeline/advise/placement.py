"""Placement: rehearses every place on a workload and names the best one, with the forecasts and the reason (E11).

Forecasts are the simulator's; nothing runs. Disaggregated is made at the start and cannot be switched to later, so this
is where it can be chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from ridgeline.engine.config import EngineConfig
from ridgeline.engine.pacing import goals_of
from ridgeline.engine.place import make_place
from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.perf.calibrate import calibrated
from ridgeline.perf.replay import spread
from ridgeline.perf.workload import Job
from ridgeline.run.costs import StepCosts
from ridgeline.run.machine import usable_cores
from ridgeline.schedule.choose import Goals
from ridgeline.sim.placement import MachineOf, Times, predict

MOST_JOBS = 128  # rehearsed: the first of the workload; a hundred requests take seconds
NEAR = 0.02  # of the requests: places that keep as many but for this are told apart by how much of the goals they use


class PlaceForecast(msgspec.Struct, frozen=True):
    """All estimated. kept: share of the requests within both goals; used: mean over the requests of the larger of time
    over goal. refused: why it cannot be had with the other options."""

    place: str
    kept: float = 0.0
    used: float = 0.0
    tokens_per_s: float = 0.0
    ttft_p50_s: float = 0.0
    ttft_p99_s: float = 0.0
    tpot_p50_s: float = 0.0
    tpot_p99_s: float = 0.0
    gap_p99_s: float = 0.0
    refused: str = ""


class Placement(msgspec.Struct, frozen=True):
    """place: the best one, as it is written. requests: of the workload that were rehearsed."""

    place: str
    why: str
    requests: int
    goals: Goals
    forecasts: tuple[PlaceForecast, ...]


def choose_placement(config: EngineConfig, jobs: Sequence[Job], machine_of: MachineOf | None = None) -> Placement:
    """config.place: auto, with the goals that were given. machine_of: by default calibrated for the model, now where it
    is not. CapacityError when no place can run this."""
    asked, jobs = make_place(config.place), sorted(jobs, key=lambda job: job.arrival_s)[:MOST_JOBS]
    program = record(describe(config.model, weights=config.weights), make_storage(config.storage), config.retention)
    threads = config.threads or usable_cores()
    machine_of = machine_of or (lambda count: calibrated(program, count, config.activations))
    goals = goals_of(asked, StepCosts({"model": program}, functools.partial(machine_of, threads), config.activations))
    tbt, ttft = f"tbt={goals.gap_s:.4f}s", f"ttft={goals.first_s:.4f}s"
    forecasts = tuple(
        _forecast(config, place, jobs, goals, machine_of)
        for place in ("chunked", f"chunked:{tbt}", f"auto:{tbt},{ttft}", "serial", "split", "corun", "disaggregated")
    )
    there = [one for one in forecasts if not one.refused]
    if not there:
        raise CapacityError(f"no place can run this workload: {forecasts[0].refused}")
    most = max(one.kept for one in there)
    best = min((one for one in there if one.kept >= most - NEAR), key=lambda one: round(one.used, 3))
    return Placement(best.place, _why(best, there, goals, len(jobs)), len(jobs), goals, forecasts)


def _forecast(
    config: EngineConfig, place: str, jobs: Sequence[Job], goals: Goals, machine_of: MachineOf
) -> PlaceForecast:
    try:
        times = predict(msgspec.structs.replace(config, place=place), jobs, machine_of)
    except UserError as error:
        return PlaceForecast(place, refused=str(error))
    ttft, tpot, gaps = spread(times.ttft_s), spread(times.tpot_s), spread(times.gaps_s)
    used = [
        max(first / goals.first_s, (each or 0.0) / goals.gap_s)
        for first, each in zip(times.ttft_s, times.tpot_s, strict=True)
    ]
    if ttft is None or times.failed:
        return PlaceForecast(place, refused=f"{times.failed} of {len(jobs)} requests do not fit.")
    return PlaceForecast(
        place, sum(one <= 1.0 for one in used) / len(used), sum(used) / len(used), _rate(times), ttft.p50, ttft.p99,
        tpot.p50 if tpot else 0.0, tpot.p99 if tpot else 0.0, gaps.p99 if gaps else 0.0,
    )  # fmt: skip


def _rate(times: Times) -> float:
    return times.output_tokens / times.wall_s if times.wall_s else 0.0


def _why(best: PlaceForecast, there: Sequence[PlaceForecast], goals: Goals, requests: int) -> str:
    others = sorted((one for one in there if one is not best), key=lambda one: (-one.kept, one.used))
    rest = ", ".join(f"{one.place} {one.kept:.0%} and {one.used:.2f}" for one in others[:2])
    return (
        f"{best.place} is forecast to keep {best.kept:.0%} of {requests} requests within {1e3 * goals.gap_s:.0f} ms a "
        f"token and {goals.first_s:.2f} s to the first, using {best.used:.2f} of these goals on average"
        + (f"; next {rest}" if rest else "")
    )


def placement_lines(placement: Placement) -> tuple[str, ...]:
    """The reason, and a line a place."""
    lines = [f"place {placement.place} (estimated): {placement.why}."]
    for one in placement.forecasts:
        told = one.refused or (
            f"kept {one.kept:.0%}, goals used {one.used:.2f}, {one.tokens_per_s:.1f} tokens/s, first token p50, p99 "
            f"{one.ttft_p50_s:.2f}, {one.ttft_p99_s:.2f} s, a token {1e3 * one.tpot_p50_s:.0f}, "
            f"{1e3 * one.tpot_p99_s:.0f} ms, longest gaps (p99) {1e3 * one.gap_p99_s:.0f} ms"
        )
        lines.append(f"  {one.place}: {told}")
    return tuple(lines)

"""Pacing: what a place says of the time that steps may take, as a scheduler's parts (B6, E11). Called by build.py."""

from __future__ import annotations

from dataclasses import replace

from ridgeline.run.costs import StepCosts
from ridgeline.schedule.choose import Chooser, Goals, Way
from ridgeline.schedule.pace import Beside, Curves, Pace
from ridgeline.schedule.scheduler import Scheduler

from .config import EngineConfig
from .place import Place, make_place

GAP_STEPS, FIRST_STEPS = 5, 200  # goals nobody gave: multiples of the estimated step of one answer alone
CONTEXT = 256  # of that one


def goals_of(place: Place, costs: StepCosts) -> Goals:
    """As the place says, else multiples of the estimated step of one answer alone."""
    step_s = costs.seconds("model", [(CONTEXT, 1)], 1)
    return Goals(place.tbt or GAP_STEPS * step_s, place.ttft or FIRST_STEPS * step_s)


def pace(config: EngineConfig, scheduler: Scheduler, costs: StepCosts, beside: Beside | None = None) -> Chooser | None:
    """Cuts the scheduler's steps to a time, or makes who chooses how they are made; None: nobody chooses. beside: of an
    engine that can run two steps at a time."""
    place = make_place(config.place)
    if not (place.tbt or place.adapts):
        return None
    curves = Curves(costs, config.step_tokens)
    if not place.adapts:
        scheduler.pace = Pace(curves, place.tbt)
        return None
    goals = goals_of(place, costs)
    mixed = config.schedule()
    ways = [
        Way(f"chunked:tbt={1e3 * goals.gap_s:.0f}ms", mixed, Pace(curves, goals.gap_s)),
        Way("chunked", mixed),
        Way("serial", replace(mixed, mixes=False)),
    ]
    if beside is not None:
        ways.append(Way("split", mixed, beside=beside))
    if config.has_native_attention:
        ways.append(Way("corun", replace(mixed, takes_turns=True)))
    return Chooser(scheduler, curves, ways, goals)

"""A few lines that say what a run cost and what bounded it, in words a newcomer understands."""

from __future__ import annotations

from collections.abc import Callable

from ridgeline.perf.energy import EnergySummary
from ridgeline.perf.roofline import COMPUTE, HOST, KV_BANDWIDTH, WEIGHT_BANDWIDTH
from ridgeline.perf.summary import AccountSummary, PhaseSummary

from .choice_lines import choice_lines
from .units import digits, joules, percent, scaled, seconds

PACE = {
    WEIGHT_BANDWIDTH: "reading the weights",
    KV_BANDWIDTH: "reading the kept keys and values",
    COMPUTE: "arithmetic",
    HOST: "the program around the model, not the model",
}
WORDS = {"prefill": "prompt", "decode": "answer", "recompute": "recomputed"}
UNTOLD = ("off", "too short")  # misses that say nothing
NEAR = 0.5  # from this share of a roof on, the roof sets the pace; below it the kernels do


def account_lines(summary: AccountSummary, *, is_random: bool = False) -> tuple[str, ...]:
    """(1) times and tokens/s by phase, (2) arithmetic intensity by phase and the ridge, (3) share of the roof,
    (4) energy; then, if there was any, (5) what was guessed ahead and (6) what others had computed already."""
    if not summary.phases:
        return ("Nothing ran.", "No work was counted.", "No roof was approached.")
    extra = (line for line in (energy_line(summary.energy), _guesses(summary), _shared(summary)) if line)
    return _times(summary, is_random), _intensities(summary), _roofs(summary), *extra, *choice_lines(summary.choices)


def energy_line(energy: EnergySummary | None) -> str:
    """Joules above idle, by phase, a token and a watt; without a meter each figure is called estimated, with its band.

    A figure's band is its own; shares of one run move together, so the phases' are given as shares.
    """
    if energy is None:
        return ""
    word = f"estimated ({energy.void or 'no meter here'}): " if energy.is_estimated else f"{energy.source}: "
    phases = ", ".join(f"{name} {percent(j / energy.net_j)}" for name, j in energy.by_phase_j.items())
    parts = [f"{_banded(energy, energy.net_j, joules)} above idle ({phases})"]
    if energy.j_per_token is not None and energy.tokens_per_j is not None:
        parts.append(f"{_banded(energy, energy.j_per_token, joules)} an output token")
        parts.append(f"{_banded(energy, energy.tokens_per_j, digits, is_inverse=True)} tokens/J")
    idle = "" if energy.idle_source == "measured" or energy.is_estimated else ", idle part estimated"
    parts.append(f"{_banded(energy, energy.mean_w, digits)} W on average with idle{idle}")
    return "Energy     " + word + "; ".join(parts)


def _banded(energy: EnergySummary, value: float, write: Callable[[float], str], is_inverse: bool = False) -> str:
    """1.90 J [0.950 J–3.80 J] without a meter, 1.90 J with one."""
    if not energy.is_estimated:
        return write(value)
    low, high = (1 / energy.band[1], 1 / energy.band[0]) if is_inverse else energy.band
    return f"{write(value)} [{write(value * low)}–{write(value * high)}]"


def _guesses(summary: AccountSummary) -> str:
    if not summary.tokens_guessed:
        return ""
    held = percent(summary.tokens_accepted / summary.tokens_guessed)
    others = "".join(
        f"; {other.name} computed {_count(other.tokens)} in {seconds(other.seconds)}, {percent(other.share)} of steps"
        for other in summary.others
    )
    return f"Guessed    {_count(summary.tokens_guessed)}, {summary.tokens_accepted:,} held ({held}){others}"


def _shared(summary: AccountSummary) -> str:
    parts = []
    if summary.tokens_cached:
        parts.append(f"{_count(summary.tokens_cached)} of beginnings were not computed again")
    if summary.transfers_s > 0:
        parts.append(f"kept state was moved for {seconds(summary.transfers_s)}")
    misses = {reason: count for reason, count in summary.memory.get("misses", {}).items() if reason not in UNTOLD}
    if misses and summary.tokens_cached:
        parts.append("misses: " + ", ".join(f"{count} {reason}" for reason, count in misses.items()))
    for tier, least in summary.memory.get("break even", {}).items():
        parts.append(f"{tier} pays from {least} tokens" if least else f"{tier} never pays")
    return f"Kept       {'; '.join(parts)}" if parts else ""


def _times(summary: AccountSummary, is_random: bool) -> str:
    parts = [
        f"{phase.name} ({WORDS[phase.name]}): {_count(phase.tokens)} in {seconds(phase.seconds)}, "
        f"{digits(phase.tokens_per_s)} tokens/s"
        for phase in summary.phases
    ]
    parts.append(f"between steps {seconds(summary.host_s)}")
    if summary.unshared_s:
        parts.append(f"threads without a step beside one {seconds(summary.unshared_s)}")
    note = " [random weights: times are real, words are not]" if is_random else ""
    return "Time       " + "; ".join(parts) + note


def _intensities(summary: AccountSummary) -> str:
    parts = [f"{phase.name} {digits(phase.intensity)}" for phase in summary.phases]
    ridge = summary.phases[0].ridge
    return (
        f"Intensity  {', '.join(parts)} operations per byte read; this machine's ridge is {digits(ridge)}: "
        "below it memory sets the pace, above it arithmetic"
    )


def _roofs(summary: AccountSummary) -> str:
    parts = [_roof(phase, summary) for phase in sorted(summary.phases, key=lambda phase: -phase.seconds)]
    if summary.bound == HOST:
        parts.insert(0, f"bounded by {PACE[HOST]} ({seconds(summary.host_s)} of {seconds(summary.wall_s)})")
    return "Roof       " + "; ".join(parts)


def _roof(phase: PhaseSummary, summary: AccountSummary) -> str:
    """The share, the two numbers it comes from, and what sets the pace."""
    if phase.roof == COMPUTE:
        peak = scaled(phase.flops / phase.roof_s if phase.roof_s > 0 else 0.0, "FLOP/s")  # mixed over number kinds
        achieved = f"{scaled(phase.achieved_flops_per_s, 'FLOP/s')} of {peak} done"
    else:
        bandwidth = scaled(summary.bandwidth_bytes_per_s, "B/s")
        achieved = f"{scaled(phase.achieved_bytes_per_s, 'B/s')} of {bandwidth} read"
    if phase.roof_share >= NEAR:
        pace = f"bounded by {PACE[phase.roof]}"
    else:
        pace = f"nearest roof is {PACE[phase.roof]}; our kernels and the gaps between them leave the rest"
    return f"{phase.name} at {percent(phase.roof_share)} of this machine's measured roof ({achieved}): {pace}"


def _count(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens:,} tokens"

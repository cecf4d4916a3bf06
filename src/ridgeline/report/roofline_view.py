"""The roofline of a run in words and numbers: operators by phase, what they reached, what they could, what is lost."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.perf.roofline import Ceiling, OperatorPoint

from .units import digits, percent, scaled, seconds

COLUMNS = ("operator", "phase", "time", "share", "FLOP/byte", "reached", "ceiling", "of it", "lost", "bound by")
CACHED = "caches"


@dataclass(frozen=True)
class Roofline:
    """Everything there is to show. points: the longest first. subtitle, footer: one line each."""

    title: str
    subtitle: str
    footer: str
    points: tuple[OperatorPoint, ...]
    ceilings: tuple[Ceiling, ...]

    @property
    def seconds(self) -> float:
        return sum(point.seconds for point in self.points)

    @property
    def drawn(self) -> tuple[OperatorPoint, ...]:
        """Points that have a place under the roof."""
        return tuple(point for point in self.points if point.intensity is not None)


def rows(roofline: Roofline) -> list[tuple[str, ...]]:
    """One row an operator and phase, in order of time. lost: seconds above the roofline time."""
    return [
        (
            point.name, point.phase, seconds(point.seconds), percent(point.seconds / roofline.seconds),
            "–" if point.intensity is None else digits(point.intensity),
            scaled(point.achieved_flops_per_s, "FLOP/s"),
            "–" if point.ceiling_flops_per_s is None else scaled(point.ceiling_flops_per_s, "FLOP/s"),
            "–" if point.share is None else percent(point.share),
            "–" if point.gap_s is None else seconds(max(0.0, point.gap_s)),
            point.roof or CACHED,
        )
        for point in roofline.points
    ]  # fmt: skip


def sentence(roofline: Roofline) -> str:
    """The ceilings that are over the points, and what all operators together lose to them."""
    over = ", ".join(
        f"{ceiling.name} {scaled(ceiling.per_s, 'B/s' if ceiling.is_slope else 'FLOP/s')}"
        for ceiling in roofline.ceilings
        if ceiling.is_over
    )
    lost_s = sum(max(0.0, point.gap_s or 0.0) for point in roofline.points)
    rest_s = sum(point.seconds for point in roofline.points if point.intensity is None)
    return (
        f"ceilings measured here: {over}; operators took {seconds(roofline.seconds)}, of that {seconds(lost_s)} above "
        f'their roofs and {seconds(rest_s)} in operators that read nothing stored ("{CACHED}")'
    )

"""The way that an engine makes its steps now, and the last switches: why, what was forecast, what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .units import digits, seconds

TOLD = 3
LABEL = "Place      "


def choice_lines(told: Mapping[str, Any]) -> list[str]:
    """told: schedule.choose.Chooser.report; nothing of an engine that does not choose."""
    if not told:
        return []
    start = [f"{LABEL}{told['start']['why']} (estimated before the start)"] if "start" in told else []
    if "now" not in told:
        return start
    lines = [
        *start,
        f"{LABEL}auto: {told['now']} now, {told['switches']} switches; goals: {seconds(told['gap_goal_s'])} from token "
        f"to token, {seconds(told['first_goal_s'])} to the first; steps take {digits(told['measured_over_estimated'])} "
        "times their estimate",
    ]
    for one in told["log"][-TOLD:]:
        lines.append(f"{' ' * len(LABEL)}{one['before']} -> {one['after']}: {one['why']}; {one['outcome']}")
    return lines

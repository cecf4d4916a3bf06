"""Outcome: what was seen of the goals between two switches, in numbers and in words. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Outcome(msgspec.Struct, frozen=True):
    """Seconds and counts: gaps between tokens of an answer, first tokens; late: over the goal."""

    gaps: int
    gaps_late: int
    mean_gap_s: float
    longest_gap_s: float
    firsts: int
    firsts_late: int


@dataclass(slots=True)
class Seen:
    """Since the last switch."""

    gaps: int = 0
    gaps_late: int = 0
    gaps_s: float = 0.0
    longest_gap_s: float = 0.0
    firsts: int = 0
    firsts_late: int = 0

    def gap(self, seconds: float, goal_s: float) -> None:
        self.gaps += 1
        self.gaps_late += seconds > goal_s
        self.gaps_s += seconds
        self.longest_gap_s = max(self.longest_gap_s, seconds)

    def first(self, seconds: float, goal_s: float) -> None:
        self.firsts += 1
        self.firsts_late += seconds > goal_s

    def outcome(self) -> Outcome:
        mean_s = self.gaps_s / self.gaps if self.gaps else 0.0
        return Outcome(self.gaps, self.gaps_late, mean_s, self.longest_gap_s, self.firsts, self.firsts_late)

    def words(self) -> str:
        longest = f" (longest {1e3 * self.longest_gap_s:.0f} ms)" if self.gaps else ""
        return (
            f"since then {self.gaps_late} of {self.gaps} gaps{longest} and {self.firsts_late} of {self.firsts} first "
            "tokens were later than the goal"
        )

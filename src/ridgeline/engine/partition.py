"""Partition: what share of a machine each of two streams gets (E4). Knows shares and predicted seconds, nothing else,
so that parts of a GPU can be shared out by it as threads are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec

from ridgeline.kit.errors import UserError

Seconds = Callable[[int, float], float]  # (stream 0 or 1, share of stream 0) -> of its next step


class PartitionOptions(msgspec.Struct, frozen=True):
    alpha: Annotated[float, "how many times its least time a step of stream 0 may take while stream 1 comes first"] = (
        1.3
    )
    beta: Annotated[float, "the same of stream 1 while stream 0 comes first"] = 1.3
    delta: Annotated[float, "shares move by at least this, or not at all"] = 0.1
    switch: Annotated[float, "stream 1 comes first when more than this share of the kept state's room is used"] = 0.7
    share: Annotated[float, "of stream 0, for ever; 0: found by prediction"] = 0.0

    @classmethod
    def read(cls, given: Mapping[str, str]) -> PartitionOptions:
        """UserError for what is no number, or outside its limits."""
        try:
            options = msgspec.convert(dict(given), cls, strict=False)
        except msgspec.ValidationError as error:
            raise UserError(f"place split: {error}. Write split:option=number,option=number.") from error
        limits = {
            "alpha": (1.0, 1e6),
            "beta": (1.0, 1e6),
            "delta": (0.0, 1.0),
            "switch": (0.0, 1.0),
            "share": (0.0, 1.0),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(options, name) <= most:
                raise UserError(f"{name} is {getattr(options, name)}; it must be from {least:g} to {most:g}.")
        return options


class Partition:
    """points: shares that can be given, rising. calls: of `seconds`, since the start; moves: of the share."""

    def __init__(self, points: tuple[float, ...], options: PartitionOptions = PartitionOptions()) -> None:
        self.inner = [point for point in points if 0.0 < point < 1.0]  # while both have work nobody gets nothing
        self.options = options
        self.calls = self.moves = 0
        wanted = options.share or 0.5
        self._at = min(range(len(self.inner)), key=lambda at: abs(self.inner[at] - wanted))

    @property
    def share(self) -> float:
        """Of stream 0 while both have work."""
        return self.inner[self._at]

    @property
    def is_open(self) -> bool:
        """Whether there is anything to decide."""
        return len(self.inner) > 1 and not self.options.share

    def decide(self, seconds: Seconds, used: float) -> float:
        """The share of stream 0 from now on. used: share of the kept state's room that is taken."""
        if self.is_open:
            found = self._search(seconds, used)
            if abs(self.inner[found] - self.share) >= self.options.delta - 1e-9:
                self.moves += found != self._at
                self._at = found
        return self.share

    def _search(self, seconds: Seconds, used: float) -> int:
        """Greedy from where it stands: the first in line shrinks while the other's slack is overdrawn, then grows while
        that holds."""
        first = 0 if used <= self.options.switch else 1
        other, slack = 1 - first, self.options.beta if first == 0 else self.options.alpha
        grow = 1 if first == 0 else -1
        last = len(self.inner) - 1
        most_for_other = 0 if first == 0 else last  # the point where the other has most
        known: dict[int, float] = {}

        def taken(at: int) -> float:
            if at not in known:
                self.calls += 1
                known[at] = seconds(other, self.inner[at])
            return known[at]

        limit = slack * taken(most_for_other)
        at = self._at
        while at != most_for_other and taken(at) > limit:
            at -= grow
        while 0 <= at + grow <= last and taken(at + grow) <= limit:
            at += grow
        return at

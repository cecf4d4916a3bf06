"""StateShape: the recurrent state that a Program keeps for a sequence, whatever its length (K11).

Owns the numbers every room needs of it; bytes are the storage's (memory/storage/recurrent.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StateShape:
    """A layer keeps its last `taps - 1` convolution inputs [taps - 1, channels] and a state [heads, states, head_dim].

    channels = heads * head_dim + 2 * groups * states: x, then B, then C of the selective scan; `groups` divides heads,
    and the heads of a group share one B and one C.
    """

    heads: int
    head_dim: int
    groups: int
    states: int
    taps: int

    @property
    def inner(self) -> int:
        """Width of x and of the gate."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Width of what is convolved."""
        return self.inner + 2 * self.groups * self.states

    @property
    def wide(self) -> int:
        """Width of the projection all of it comes from: gate, channels, a time step a head."""
        return self.inner + self.channels + self.heads

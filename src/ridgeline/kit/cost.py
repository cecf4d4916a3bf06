"""Cost: FLOPs and bytes by what they are for. Numbers or arrays alike; evaluated off the hot path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# A number or an array of numbers (one per step); arithmetic is the same for both.
Number = Any


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs and bytes that an operator must at least do and move (A4, A8).

    weight_bytes: parameters as stored; kv_bytes: KV read and written as stored;
    activation_bytes: inputs read and outputs written (f32 in the arena).
    """

    flops: Number = 0
    weight_bytes: Number = 0
    kv_bytes: Number = 0
    activation_bytes: Number = 0

    @property
    def bytes(self) -> Number:
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> Number:
        """FLOPs per byte."""
        return self.flops / self.bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.activation_bytes + other.activation_bytes,
        )

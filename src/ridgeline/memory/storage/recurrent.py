"""recurrent: the state of a layer that keeps no tokens, f32, the same size at every length (K11).

Not one of STORAGES: nobody chooses it with --kv, a family's recurrent layers bring it. It gives rollback by snapshot
(memory/recurrent_pool.py), never by forgetting the last tokens.
"""

from __future__ import annotations

from ridgeline.kit.capability import SNAPSHOT
from ridgeline.ops.recurrent import StateShape

ALIGNMENT = 64  # the two parts of a layer begin on cache lines; RL_STATE_ALIGNMENT of the native kernels


class RecurrentStorage:
    """A layer: inputs [taps - 1][channels], then from the next cache line states [heads][states][head_dim]."""

    name = "recurrent"
    native = 0
    determinism = "bitwise"
    gives = frozenset({SNAPSHOT})

    def conv_bytes(self, shape: StateShape) -> int:
        return (shape.taps - 1) * shape.channels * 4

    def scan_bytes(self, shape: StateShape) -> int:
        return shape.heads * shape.states * shape.head_dim * 4

    def scan_offset(self, shape: StateShape) -> int:
        """Where in a layer its second part begins."""
        return _align(self.conv_bytes(shape))

    def layer_bytes(self, shape: StateShape) -> int:
        """From one layer of a slot to the next."""
        return self.scan_offset(shape) + _align(self.scan_bytes(shape))


def _align(nbytes: int) -> int:
    return (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


STORAGE: RecurrentStorage = RecurrentStorage()

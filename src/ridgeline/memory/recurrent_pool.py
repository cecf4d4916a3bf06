"""RecurrentPool: the bytes of recurrent state, one zero mapping; a slot holds every layer of one sequence (K11).

Owns the mapping. Who holds which slot is RecurrentMemory's matter, what is inside a layer the storage's.
"""

from __future__ import annotations

import numpy as np

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.protocols import Floats
from ridgeline.ops.recurrent import StateShape

from .kv_pool import Bytes, zeros
from .storage.recurrent import RecurrentStorage


class RecurrentPool:
    """`slots` slots of `layers` layers of one shape. The system gives memory on first touch."""

    def __init__(self, storage: RecurrentStorage, shape: StateShape, *, layers: int, slots: int) -> None:
        if min(layers, slots) < 1:
            raise InvariantError(f"recurrent pool of {layers=} {slots=}: both must be positive")
        self.storage, self.shape, self.layers, self.slots = storage, shape, layers, slots
        self.layer_bytes = storage.layer_bytes(shape)
        self.slot_bytes = layers * self.layer_bytes
        self.data: Bytes = zeros(slots * self.slot_bytes)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def conv(self, slot: int, layer: int) -> Floats:
        """[taps - 1, channels] f32, the oldest input first; a writable view."""
        shape, start = self.shape, self._start(slot, layer)
        part = self.data[start : start + self.storage.conv_bytes(shape)]
        return part.view(np.float32).reshape(shape.taps - 1, shape.channels)

    def scan(self, slot: int, layer: int) -> Floats:
        """[heads, states, head_dim] f32, a writable view."""
        shape, start = self.shape, self._start(slot, layer) + self.storage.scan_offset(self.shape)
        part = self.data[start : start + self.storage.scan_bytes(shape)]
        return part.view(np.float32).reshape(shape.heads, shape.states, shape.head_dim)

    def copy(self, source: int, target: int) -> None:
        """The whole state of a slot to another."""
        size = self.slot_bytes
        begin, end = self._start(source, 0), self._start(target, 0)
        self.data[end : end + size] = self.data[begin : begin + size]

    def _start(self, slot: int, layer: int) -> int:
        if not (0 <= slot < self.slots and 0 <= layer < self.layers):
            raise InvariantError(f"no state at slot {slot}, layer {layer} of this pool")
        return slot * self.slot_bytes + layer * self.layer_bytes

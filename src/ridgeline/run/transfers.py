"""Mover: carries out the transfers of a plan on the pools of one Program, in their order, before its entries run.

Bytes only: what they mean is the storage's matter, which blocks they are was decided by memory/.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.state.transfer import CopyBlock, CopyState, Transfer


class Mover:
    """pools: one a group. bytes_moved: read and written once each, since the start."""

    def __init__(self, pools: tuple[KvPool, ...], states: RecurrentPool | None = None) -> None:
        self.pools, self.states = pools, states
        self.bytes_moved = 0

    def run(self, transfers: Iterable[Transfer]) -> int:
        """Nanoseconds it took."""
        began = time.perf_counter_ns()
        for transfer in transfers:
            match transfer:
                case CopyBlock(group, source, target):
                    pool = self.pools[group]
                    pool.block(target)[:] = pool.block(source)
                    self.bytes_moved += pool.block_stride
                case CopyState(source, target) if self.states is not None:
                    self.states.copy(source, target)
                    self.bytes_moved += self.states.slot_bytes
                case _:
                    raise InvariantError(f"no way to carry out {transfer}")
        return time.perf_counter_ns() - began

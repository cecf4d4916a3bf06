"""Mover: carries out the transfers of a plan on the pools of one Program, in their order, before its entries run.

Bytes only: what they mean is the storage's matter, which blocks they are was decided by memory/. Every storage keeps a
token as units of 4 bytes, so tokens move without being unpacked.
"""
# size: 16 short methods; state.ports.KeptState is one protocol, and only who moves bytes knows them

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.memory.spans import grain_of, holds_block, most_blocks
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.memory.tier_store import TierStore
from ridgeline.ops.kv import Reach
from ridgeline.state.plan import StepPlan
from ridgeline.state.transfer import (
    CopyBlock,
    CopyState,
    LoadBlock,
    MoveSaved,
    MoveTokens,
    PackTokens,
    SaveBlock,
    Transfer,
)

Places = npt.NDArray[np.int64]
MEASURING, MEASURED_BLOCKS = -1, 6  # keys that Tiers never gives; blocks of which the fastest counts


class Mover:
    """pools, reaches: one a group. store: where blocks are saved. bytes_moved: since the start, read and written."""

    def __init__(
        self, pools: tuple[KvPool, ...], states: RecurrentPool | None = None, reaches: tuple[Reach, ...] = ()
    ) -> None:
        self.pools, self.states, self.store = pools, states, TierStore()
        self.reaches = reaches or (Reach(),) * len(pools)
        self.bytes_moved = 0
        self._line_ns = np.zeros(0, np.int64)
        self._marks: tuple[Places, ...] = ()
        self._is_under_way = False
        self._on_begin: Callable[[StepPlan], None] | None = None

    def follow(self, line_ns: npt.NDArray[np.int64], marks: tuple[Places, ...]) -> None:
        """line_ns: lines' times as a native call writes them, one after another as they end; 0: not yet. marks: of
        every group, the line that ends each of its layers."""
        self._line_ns, self._marks = line_ns, marks

    def begin(self, plan: StepPlan) -> None:
        """A step will now write line_ns."""
        if self._on_begin is not None:
            self._line_ns.fill(0)
            self._is_under_way = True
            self._on_begin(plan)

    def end(self) -> None:
        self._is_under_way = False

    def run(self, transfers: Iterable[Transfer]) -> int:
        """Nanoseconds it took."""
        began = time.perf_counter_ns()
        for transfer in transfers:
            self.bytes_moved += self._carry_out(transfer)
        return time.perf_counter_ns() - began

    # -- state.ports.KeptState

    @property
    def block_bytes(self) -> tuple[int, ...]:
        return tuple(pool.block_stride for pool in self.pools)

    @property
    def layout(self) -> str:
        return "; ".join(
            f"{pool.storage.name} {pool.layers}x{pool.kv_heads}x{pool.head_dim}x{pool.block_tokens}"
            for pool in self.pools
        )

    def layers(self, group: int) -> int:
        return self.pools[group].layers

    def layers_done(self, group: int) -> int:
        if not self._is_under_way:
            return self.pools[group].layers
        # A line has its time only after the barrier before the next one that reads what it wrote: when a layer's last
        # line has one, all threads have left that layer's attention.
        ended = np.flatnonzero(self._line_ns.copy())  # a copy: it changes meanwhile
        return int(np.searchsorted(self._marks[group], ended[-1], side="right")) if ended.size else 0

    def watch(self, on_begin: Callable[[StepPlan], None]) -> None:
        self._on_begin = on_begin

    @property
    def grain(self) -> int:
        return grain_of(self.reaches)

    def holds(self, group: int, index: int, tokens: int) -> bool:
        return holds_block(self.reaches[group], index, tokens)

    def most(self, group: int, tokens: int) -> int:
        return most_blocks(self.reaches[group], tokens, 1)

    def block(self, group: int, block: int) -> npt.NDArray[np.uint8]:
        return self.pools[group].block(block)

    def adopt(self, group: int, key: int, data: npt.NDArray[np.uint8]) -> None:
        self.store.adopt(group, key, data)

    def drop(self, key: int) -> None:
        self.store.move(key, "")

    # -- steps

    def measure(self, tier: str) -> float:
        """Bytes a second of blocks that come back from a tier, best of a few. Only while nothing is kept yet."""
        seconds = []
        for repeat in range(MEASURED_BLOCKS):
            for group, pool in enumerate(self.pools):
                self.store.save(group, MEASURING - repeat, pool.block(repeat % pool.blocks), tier)
        for repeat in range(MEASURED_BLOCKS):
            began = time.perf_counter()
            for group, pool in enumerate(self.pools):
                self.store.load(group, MEASURING - repeat, pool.block(repeat % pool.blocks))
            seconds.append(time.perf_counter() - began)
            self.store.move(MEASURING - repeat, "")
        return sum(pool.block_stride for pool in self.pools) / min(seconds)

    def close(self) -> None:
        """Forget what was saved."""
        self.store.close()

    def _carry_out(self, transfer: Transfer) -> int:
        """Bytes moved."""
        match transfer:
            case CopyBlock(group, source, target):
                pool = self.pools[group]
                pool.block(target)[:] = pool.block(source)
                return pool.block_stride
            case SaveBlock(group, block, key, tier):
                self.store.save(group, key, self.pools[group].block(block), tier)
                return self.pools[group].block_stride
            case LoadBlock(group, key, block):
                self.store.load(group, key, self.pools[group].block(block))
                return self.pools[group].block_stride
            case MoveSaved(key, tier):
                return self.store.move(key, tier)
            case MoveTokens(group, blocks, sources, targets):
                places = [np.array(slots)[:, None, None] for slots in (sources, targets)]
                return _move(self.pools[group], blocks.astype(np.int64), *places)
            case PackTokens():
                return _pack(self.pools[transfer.group], transfer)
            case CopyState(source, target) if self.states is not None:
                self.states.copy(source, target)
                return self.states.slot_bytes
        raise InvariantError(f"no way to carry out {transfer}")


def _move(pool: KvPool, blocks: Places, sources: Places, targets: Places) -> int:
    """Slots [n, layers, heads] (or 1 for all) to slots: reads all, then writes all, so they may overlap."""
    layer, head = np.arange(pool.layers)[:, None], np.arange(pool.kv_heads)
    source = (blocks[sources // BLOCK_TOKENS], layer, head, sources % BLOCK_TOKENS)
    target = (blocks[targets // BLOCK_TOKENS], layer, head, targets % BLOCK_TOKENS)
    moved = 0
    for pages in (pool.key_units(), pool.value_units()):  # [blocks, layers, heads, 16, units]
        tokens = pages[source]
        pages[target] = tokens
        moved += tokens.nbytes
    if pool.mass is not None:
        pool.mass[target] = pool.mass[source]
    return moved


def _pack(pool: KvPool, pack: PackTokens) -> int:
    """Keep sinks, heavy hitters and recent tokens, in order; of equal mass the earlier (C10)."""
    if pool.mass is None:
        raise InvariantError("tokens are packed by attention mass, and this pool keeps none")
    blocks = pack.blocks.astype(np.int64)
    slots = np.arange(pack.sinks, pack.slots - pack.recent)
    mass = pool.mass[blocks[slots // BLOCK_TOKENS], :, :, slots % BLOCK_TOKENS]  # [slots, layers, heads]
    heavy = np.sort(np.argsort(-mass, axis=0, kind="stable")[: pack.heavy], axis=0) + pack.sinks
    recent = np.arange(pack.slots - pack.recent, pack.slots)[:, None, None]
    sources = np.concatenate([heavy, np.broadcast_to(recent, (pack.recent, *mass.shape[1:]))])
    targets = np.arange(pack.sinks, pack.sinks + len(sources))[:, None, None]
    return _move(pool, blocks, sources, targets)

"""BlockMemory: every sequence's block tables, one a group of layers; the scheduler's SequenceMemory.

Pages on demand (C3), or at once (C2). Beginnings that were computed before, or are being computed now, are shared
through the prefix tree (C5, C6) and copied where sequences part (C4). Refuses to write: it decides which block of a
pool holds which 16 tokens, and tells the runner what to copy.
"""
# size: the whole port SequenceMemory, over groups of layers that only move together

from __future__ import annotations

from collections import Counter

import numpy as np

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.kv import PACK, Reach
from ridgeline.state.plan import Ints, SequenceId
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import LoadBlock, MoveTokens, PackTokens, Parcel, Transfer

from .pool import NONE, BlockPool
from .sharing import Held, Sharing, shareable
from .spans import blocks_for, blocks_until, dropped_blocks, holds_block, most_blocks, next_due, slot_of
from .storage.storage import BLOCK_TOKENS
from .table import Table
from .tiers import TIERS, Tiers

WORTH_WAITING = BLOCK_TOKENS  # tokens that must be coming for a sequence to wait for them; less is computed twice


class BlockMemory:
    """reaches: what each group of layers keeps, one a pool. contiguous: neighbouring blocks for all the tokens a
    request may ever compute, from its admission on (what engines did before paging); otherwise waste is at most
    BLOCK_TOKENS - 1 tokens a sequence. step_tokens: the most one step computes of a sequence. alone: why no prefix is
    shared ("": they are). waits: a sequence waits while another computes its beginning."""

    def __init__(
        self, pools: BlockPool | tuple[BlockPool, ...], *, context: int, reaches: tuple[Reach, ...] = (Reach(),),
        contiguous: bool = False, step_tokens: int = 1 << 30, alone: str = "off", waits: bool = True,
        program: str = "model", tiers: Tiers | None = None,
    ) -> None:  # fmt: skip
        self.pools = pools if isinstance(pools, tuple) else (pools,)
        if len(self.pools) != len(reaches):
            raise InvariantError(f"{len(self.pools)} pools for {len(reaches)} groups of layers")
        if not alone and not all(reach.is_stable for reach in reaches):
            raise InvariantError("a retention that drops tokens cannot share prefixes")
        self.reaches, self.context, self.contiguous, self.step_tokens = reaches, context, contiguous, step_tokens
        self.alone, self.waits, self.program = alone, waits, program
        self.sharing = None if alone else Sharing(self.pools, program, tiers, reaches)
        self._packs = any(reach.heavy for reach in reaches)
        self._held: dict[SequenceId, Held] = {}
        self._moves: list[Transfer] = self.sharing.moves if self.sharing is not None else []
        self._counts: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()

    @property
    def pool(self) -> BlockPool:
        """Of the first group."""
        return self.pools[0]

    # -- room

    def fits_ever(self, tokens: int) -> bool:
        return all(
            most_blocks(reach, tokens, self.step_tokens) <= pool.blocks
            for reach, pool in zip(self.reaches, self.pools, strict=True)
        )

    def has_headroom(self, sequences: int) -> bool:
        return self.contiguous or all(pool.free_blocks + pool.cached_blocks >= sequences for pool in self.pools)

    def reserve(self, sequence: Sequence, computed: int, tokens: int) -> bool:
        held = self._held.get(sequence.id)
        if held is not None and computed + tokens <= held.room:
            return True
        tables = held.tables if held else self._tables()
        arrived = max(computed, sequence.parcel.tokens) if sequence.parcel else computed
        missing: list[list[bool]] = []  # blocks that are appended: whether there is anything to keep in them
        for reach, table in zip(self.reaches, tables, strict=True):
            ahead = tokens if reach.is_everything else self.longest(arrived, computed + tokens - arrived)
            begin = computed if reach.is_everything else arrived
            until = blocks_until(reach, slot_of(reach, begin) + ahead)
            missing.append([_is_kept(reach, index, arrived) for index in range(table.length, until)])
        if not any(missing):
            return True
        if self.contiguous and held is None:
            most = sequence.request.tokens_most(self.context)
            taken = [
                pool.allocate_run(blocks_until(reach, most))
                for reach, pool in zip(self.reaches, self.pools, strict=True)
            ]
            missing = [[True] * len(blocks or ()) for blocks in taken]
        else:
            counts = [sum(blocks) for blocks in missing]
            self._make_room(max(counts))
            taken = [pool.allocate(count) for pool, count in zip(self.pools, counts, strict=True)]
        if any(blocks is None for blocks in taken):
            for pool, blocks in zip(self.pools, taken, strict=True):
                pool.free(blocks or ())
            return False
        for table, blocks, kept in zip(tables, taken, missing, strict=True):
            following = iter(blocks or ())
            table.append([next(following) if is_kept else NONE for is_kept in kept])
        if held is None:
            held = self._held[sequence.id] = Held(tables)
        held.views = None
        if not self._packs:
            held.room = min(
                BLOCK_TOKENS * table.length + (reach.block - 1 if reach.block and not reach.is_recent else 0)
                for reach, table in zip(self.reaches, tables, strict=True)
            )
        return True

    def _make_room(self, count: int) -> None:
        """Cached blocks make way, where that is enough."""
        if self.sharing is not None and any(pool.free_blocks < count for pool in self.pools):
            self.sharing.tree.make_room(count)

    def _tables(self) -> tuple[Table, ...]:
        return tuple(Table() for _ in self.pools)

    # -- what an entry needs

    def longest(self, computed: int, tokens: int) -> int:
        most = min(tokens, self.step_tokens)
        return min(most, PACK - computed % PACK) if self._packs else most

    def blocks_of(self, sequence: Sequence) -> tuple[Ints, ...]:
        """int32 [blocks] for every group, views: later appends go behind them."""
        return self._held[sequence.id].look()

    def slots_of(self, sequence: Sequence, computed: int) -> tuple[int, ...]:
        return tuple(slot_of(reach, computed) for reach in self.reaches) if self._packs else ()

    def state_of(self, sequence: Sequence) -> int:
        return -1

    def holds(self, sequence: Sequence) -> int:
        """Blocks held by the sequence, all groups together."""
        held = self._held.get(sequence.id)
        return sum(table.held for table in held.tables) if held else 0

    def transfers(self) -> tuple[Transfer, ...]:
        if not self._moves:
            return ()
        moves = tuple(self._moves)
        self._moves.clear()
        return moves

    # -- from admission to release

    def admit(self, sequence: Sequence) -> int | None:
        known = sequence.tokens_known
        if self.sharing is None:
            self._count(self.alone, 0, known)
            return 0
        tree, tokens, limit = self.sharing.tree, tuple(sequence.tokens), shareable(sequence)
        salt = sequence.request.sharing_salt
        match = tree.match(salt, tokens, limit).whole(self.sharing.grain)
        if self.waits and sequence.parcel is None and match.promised - match.tokens >= WORTH_WAITING:
            self._counts["deferred"] += 1
            return None
        reason = tree.why(salt, tokens, limit, match) if limit == known - 1 else "scores wanted"
        held = self._held[sequence.id] = Held(self._tables(), salt)
        found = self.sharing.take(held, match)
        self.sharing.promise(held, tokens)
        self._count(reason, found, known)
        return found

    def unpack(self, sequence: Sequence, computed: int, parcel: Parcel) -> int:
        held = self._held[sequence.id]
        for index in range(computed // BLOCK_TOKENS, blocks_for(parcel.tokens)):
            key = parcel.first_key + index
            self._moves += [
                LoadBlock(group, key, table[index], self.program)
                for group, (reach, table) in enumerate(zip(self.reaches, held.tables, strict=True))
                if holds_block(reach, index, parcel.tokens)
            ]
        self._counts["unpacked"] += max(0, parcel.tokens - computed)
        return max(computed, parcel.tokens)

    def _count(self, reason: str, found: int, known: int) -> None:
        self._counts.update({"admitted": 1, "tokens": known, "tokens shared": found})
        if reason:
            self._misses[reason] += 1

    def advance(self, sequence: Sequence, computed: int) -> None:
        held = self._held.get(sequence.id)
        if held is None or computed < held.due:
            return
        if self.sharing is not None:
            for group, reach in enumerate(self.reaches):
                if reach.is_recent:
                    self._drop(group, held, computed)
            self.sharing.publish(held, sequence.tokens, computed)
            return
        held.due = min(next_due(reach, computed) for reach in self.reaches)
        for group, reach in enumerate(self.reaches):
            if reach.heavy:
                self._pack(group, held, computed)
            elif not reach.is_everything:
                self._drop(group, held, computed)
        held.kept = computed

    def _drop(self, group: int, held: Held, computed: int) -> None:
        if gone := held.tables[group].drop(*dropped_blocks(self.reaches[group], computed)):
            self.pools[group].free(gone)
            held.views = None

    def _pack(self, group: int, held: Held, computed: int) -> None:
        """At multiples of PACK only what the retention keeps stays, from slot 0 on (C10)."""
        reach, table = self.reaches[group], held.tables[group]
        slots = slot_of(reach, computed - PACK) + PACK
        if computed % PACK == 0 and computed > held.kept and slots > reach.budget:
            self._moves.append(
                PackTokens(group, table.view(), slots, reach.sinks, reach.heavy, reach.window, self.program)
            )
            self.pools[group].free(table.cut(blocks_for(reach.budget)))
            held.views = None

    def keep_places(self, sequence: Sequence, computed: int, places: tuple[int, ...]) -> None:
        held = self._held[sequence.id]
        if any(place < index for index, place in enumerate(places)):
            raise InvariantError(f"places {places} of a branch are not in order")
        moved = [(place, index) for index, place in enumerate(places) if place != index]
        for group, (reach, table) in enumerate(zip(self.reaches, held.tables, strict=True)):
            slot = slot_of(reach, computed)
            sources, targets = (tuple(slot + pair[side] for pair in moved) for side in (0, 1))
            self._moves.append(MoveTokens(group, table.view(), sources, targets, self.program))

    def release(self, sequence: Sequence, computed: int) -> None:
        held = self._held.pop(sequence.id, None)
        if held is None:
            return
        cached = 0
        if self.sharing is not None:
            self.sharing.publish(held, sequence.tokens, computed)
            cached = self.sharing.leave(held, tuple(sequence.tokens[:computed]))
        for pool, table in zip(self.pools, held.tables, strict=True):
            pool.free(table.blocks(cached))

    # -- what happened

    def report(self) -> dict[str, object]:
        """Since the start: tokens asked and found, why admissions found no more, blocks cached, copied, evicted."""
        sharing = self.sharing
        return {
            "shares": sharing is not None,
            **{name: self._counts[name] for name in ("admitted", "tokens", "tokens shared", "deferred", "unpacked")},
            "copied": sharing.copied if sharing else 0,
            "evicted": sharing.tree.evicted if sharing else 0,
            "cached blocks": self.pool.cached_blocks,
            "held blocks": sum(pool.held_blocks for pool in self.pools),
            **self._report_tiers(),
            "misses": dict(self._misses),
        }

    def picture(self, cells: int) -> bytes:
        return self.pool.picture(cells)

    def occupancy(self) -> tuple[int, int, int]:
        pools = self.pools
        return (
            sum(pool.free_blocks for pool in pools), sum(pool.held_blocks for pool in pools),
            sum(pool.cached_blocks for pool in pools),
        )  # fmt: skip

    def _report_tiers(self) -> dict[str, object]:
        tiers = self.sharing.tiers if self.sharing is not None else None
        if tiers is None:
            return {}
        even = {tier: tiers.break_even.least_tokens(tier) for tier in TIERS if tiers.room[tier]}
        held = {f"in {tier}": tiers.count(tier) for tier in TIERS}
        return {"saved": tiers.saved, "loaded": tiers.loaded, **held, "break even": even}

    def check(self) -> None:
        if any(held.views and any(map(_differ, held.views, held.tables)) for held in self._held.values()):
            raise InvariantError("a table has changed and plans are still given the old one")
        for group, pool in enumerate(self.pools):
            pool.check()
            tables = Counter(block for held in self._held.values() for block in held.tables[group].blocks())
            for block, count in tables.items():
                if pool.references(block) != count:
                    raise InvariantError(f"block {block} is in {count} tables, not {pool.references(block)}")
            if len(tables) != pool.held_blocks:
                raise InvariantError(f"{pool.held_blocks} blocks are held but {len(tables)} are in block tables")
        if self.sharing is not None:
            self.sharing.tree.check()


def _is_kept(reach: Reach, index: int, computed: int) -> bool:
    """Whether block number `index` will be read by tokens from `computed` on."""
    begin, end = (0, 0) if reach.is_everything or not reach.block else dropped_blocks(reach, computed)
    return not begin <= index < end


def _differ(view: Ints, table: Table) -> bool:
    return not np.array_equal(view, table.view())

"""RecurrentMemory: which sequence holds which slot of recurrent state; the scheduler's SequenceMemory of such a model.

One slot a sequence whatever its length. Rollback is by snapshot: save copies a slot to a free one, restore copies it
back, drop frees it. Refuses to write: copies are transfers that the runner executes before the next step.
"""
# size: the whole port SequenceMemory

from __future__ import annotations

from ridgeline.kit.errors import InvariantError
from ridgeline.state.plan import Ints, SequenceId
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import CopyState, Parcel, Transfer

from .pool import BlockPool


class RecurrentMemory:
    """slots: BlockPool counts them; every slot is free, held by a sequence or held as a snapshot (promise 2)."""

    def __init__(self, slots: int) -> None:
        self.pool = BlockPool(slots)
        self._slots: dict[SequenceId, int] = {}
        self._snapshots: dict[int, SequenceId] = {}  # slot of the copy -> whose state it is
        self._transfers: list[Transfer] = []

    # -- SequenceMemory

    def fits_ever(self, tokens: int) -> bool:
        return True

    def admit(self, sequence: Sequence) -> int | None:
        return 0

    def reserve(self, sequence: Sequence, computed: int, tokens: int) -> bool:
        if sequence.id in self._slots:
            return True
        if computed:
            raise InvariantError(f"sequence {sequence.id} has computed {computed} tokens and holds no state")
        slots = self.pool.allocate(1)
        if slots is None:
            return False
        self._slots[sequence.id] = slots[0]
        return True

    def unpack(self, sequence: Sequence, computed: int, parcel: Parcel) -> int:
        raise InvariantError("a recurrent state is not kept in blocks; it cannot come from another engine")

    def has_headroom(self, sequences: int) -> bool:
        return True

    def longest(self, computed: int, tokens: int) -> int:
        return tokens

    def blocks_of(self, sequence: Sequence) -> tuple[Ints, ...]:
        return ()

    def slots_of(self, sequence: Sequence, computed: int) -> tuple[int, ...]:
        return ()

    def state_of(self, sequence: Sequence) -> int:
        return self._slots[sequence.id]

    def holds(self, sequence: Sequence) -> int:
        """Slots held by the sequence, its snapshots included."""
        return (sequence.id in self._slots) + sum(owner == sequence.id for owner in self._snapshots.values())

    def advance(self, sequence: Sequence, computed: int) -> None:
        pass

    def keep_places(self, sequence: Sequence, computed: int, places: tuple[int, ...]) -> None:
        raise InvariantError("a recurrent state holds no tokens to choose from; it is rolled back by snapshot")

    def release(self, sequence: Sequence, computed: int) -> None:
        """The slot and every snapshot of the sequence."""
        for snapshot in [slot for slot, owner in self._snapshots.items() if owner == sequence.id]:
            self.drop(snapshot)
        slot = self._slots.pop(sequence.id, None)
        if slot is not None:
            self.pool.free([slot])

    def transfers(self) -> tuple[Transfer, ...]:
        told, self._transfers = tuple(self._transfers), []
        return told

    def report(self) -> dict[str, object]:
        return {"slots held": self.pool.held_blocks}

    def picture(self, cells: int) -> bytes:
        return self.pool.picture(cells)

    def occupancy(self) -> tuple[int, int, int]:
        return self.pool.free_blocks, self.pool.held_blocks, self.pool.cached_blocks

    def check(self) -> None:
        self.pool.check()
        held = [*self._slots.values(), *self._snapshots]
        if len(set(held)) != len(held) or len(held) != self.pool.held_blocks:
            raise InvariantError(f"{self.pool.held_blocks} state slots are held; {len(held)} are accounted for")

    # -- rollback

    def save(self, sequence: Sequence) -> int | None:
        """A snapshot of the state as it is before the next step; None when no slot is free."""
        slots = self.pool.allocate(1)
        if slots is None:
            return None
        self._snapshots[slots[0]] = sequence.id
        self._transfers.append(CopyState(self._slots[sequence.id], slots[0]))
        return slots[0]

    def restore(self, sequence: Sequence, snapshot: int) -> None:
        """The state becomes that of the snapshot again, which stays; the caller sets the computed count back."""
        if self._snapshots.get(snapshot) != sequence.id:
            raise InvariantError(f"sequence {sequence.id} has no snapshot {snapshot}")
        self._transfers.append(CopyState(snapshot, self._slots[sequence.id]))

    def drop(self, snapshot: int) -> None:
        """Forget a snapshot."""
        if self._snapshots.pop(snapshot, None) is None:
            raise InvariantError(f"there is no snapshot {snapshot}")
        self.pool.free([snapshot])

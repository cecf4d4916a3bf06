"""What lower rooms need from higher ones, as protocols the higher rooms fill."""
# size: SequenceMemory is all that the scheduler asks of memory, one method a question

# size: SequenceMemory is all a scheduler may ask of a memory

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .plan import Ints, Mask, SequenceId, StepPlan, StepResult
from .sequence import Sequence
from .transfer import Parcel, Transfer


class StepRunner(Protocol):
    """Executes plans. submit returns a ticket; collect blocks until that step is done."""

    def submit(self, plan: StepPlan) -> object: ...

    def collect(self, ticket: object) -> StepResult: ...


class StepObserver(Protocol):
    """Watches every step; must be cheap (it sits in the hot path)."""

    def on_step(self, plan: StepPlan, result: StepResult) -> None: ...

    def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None: ...


class TokenRules(Protocol):
    """Which tokens a sequence may go on with: grammars, and ends that come too early. A rule that cannot be kept ends
    the sequence; it is never dropped."""

    def mask(self, sequence: Sequence, path: tuple[int, ...] = ()) -> Mask | None:
        """After its known tokens and `path`; None: all may follow, or nothing can come after such a path."""
        ...

    def failure(self, sequence: Sequence) -> str:
        """Why its rules cannot be kept any more; "" as long as they can."""
        ...

    def forget(self, sequence: SequenceId) -> None:
        """It has ended here."""
        ...


class BreakEven(Protocol):
    """Load or compute again (B10): bytes over the bandwidth of a tier against the estimated time of the tokens."""

    def least_tokens(self, tier: str) -> int:
        """The shortest beginning that pays; 0: none does."""
        ...

    def pays(self, tokens: int, tier: str) -> bool:
        """Whether the state of a beginning of `tokens` tokens comes back sooner from the tier than by computing it."""
        ...


class KeptState(Protocol):
    """The bytes of kept state of the program "model", block by block: what travels between engines (E8, E9)."""

    @property
    def block_bytes(self) -> tuple[int, ...]:
        """Bytes of one block in every group."""
        ...

    @property
    def layout(self) -> str:
        """Two engines understand each other's blocks when these are equal."""
        ...

    @property
    def grain(self) -> int:
        """Blocks of a beginning are final once a multiple of so many tokens is computed."""
        ...

    def holds(self, group: int, index: int, tokens: int) -> bool:
        """Whether there is anything in block number `index` of a group for a sequence of `tokens` computed tokens."""
        ...

    def most(self, group: int, tokens: int) -> int:
        """Blocks of a group that a sequence of at most `tokens` computed tokens may hold."""
        ...

    def block(self, group: int, block: int) -> npt.NDArray[np.uint8]:
        """[block_bytes[group]], a view."""
        ...

    def layers(self, group: int) -> int:
        """Layers in a block of this group; they lie one after another and have equal bytes."""
        ...

    def layers_done(self, group: int) -> int:
        """How many of these layers, from the first, the step under way has computed; all when none is under way. From
        any thread."""
        ...

    def watch(self, on_begin: Callable[[StepPlan], None]) -> None:
        """Be told of every step as it begins, by the engine's thread; layers_done speaks of that step from then on."""
        ...

    def adopt(self, group: int, key: int, data: npt.NDArray[np.uint8]) -> None:
        """Save these bytes under the key, for LoadBlock; they are not copied."""
        ...

    def drop(self, key: int) -> None:
        """Forget what is saved under the key."""
        ...


class SequenceMemory(Protocol):
    """Where the state of sequences lives for one program, as the scheduler sees it. All groups of layers together.

    Order of calls for a sequence: admit, then reserve / blocks_of / slots_of / advance for every step, then release.
    `computed`: tokens of the sequence whose state this memory holds.
    """

    def fits_ever(self, tokens: int) -> bool:
        """Whether a sequence of this many tokens could be held by an empty pool."""
        ...

    def admit(self, sequence: Sequence) -> int | None:
        """Take what is already kept of its beginning (C5, C6): how many of its tokens need not be computed, at most
        all known but one. None: somebody else is computing its beginning now, so ask again (counted as deferred)."""
        ...

    def reserve(self, sequence: Sequence, computed: int, tokens: int) -> bool:
        """Make room for `tokens` more after `computed`; False (and no change) when there is none."""
        ...

    def unpack(self, sequence: Sequence, computed: int, parcel: Parcel) -> int:
        """Put what another engine computed into the blocks just reserved, after the `computed` tokens that are here
        already; how many are computed then. Told by transfers, so what is in the parcel must stay until the step."""
        ...

    def has_headroom(self, sequences: int) -> bool:
        """Whether `sequences` running sequences could each grow by one more block without evicting anyone."""
        ...

    def longest(self, computed: int, tokens: int) -> int:
        """The most of `tokens` that one step may compute after `computed`: a retention that packs does so at fixed
        positions, so that no schedule changes what is kept."""
        ...

    def blocks_of(self, sequence: Sequence) -> tuple[Ints, ...]:
        """A block table for every group, for an Entry."""
        ...

    def slots_of(self, sequence: Sequence, computed: int) -> tuple[int, ...]:
        """Slot of token `computed` in every group; () when slots are positions."""
        ...

    def state_of(self, sequence: Sequence) -> int:
        """Slot of the recurrent state, -1 without."""
        ...

    def holds(self, sequence: Sequence) -> int:
        """Blocks held by the sequence."""
        ...

    def advance(self, sequence: Sequence, computed: int) -> None:
        """The first `computed` tokens are computed and will not be taken back: publish what others may share, give
        back what the retention drops."""
        ...

    def keep_places(self, sequence: Sequence, computed: int, places: tuple[int, ...]) -> None:
        """Of the tokens after `computed` of the step just done only those at these places of the entry stay, as the
        next ones in order (an accepted branch of a tree, I9)."""
        ...

    def release(self, sequence: Sequence, computed: int) -> None:
        """Give back everything the sequence holds; full blocks of its first `computed` tokens may stay cached."""
        ...

    def transfers(self) -> tuple[Transfer, ...]:
        """What must be moved before the next step's entries run; told once."""
        ...

    def report(self) -> dict[str, object]:
        """What happened since the start, in a few numbers by name; something msgspec can encode."""
        ...

    def occupancy(self) -> tuple[int, int, int]:
        """Blocks free, held and cached, over all groups."""
        ...

    def picture(self, cells: int) -> bytes:
        """The first group's pool in at most so many cells: 16 x held + cached, each in fifteenths of the cell."""
        ...

    def check(self) -> None:
        """Raise InvariantError unless free + held + cached = all blocks of every group (C1)."""
        ...

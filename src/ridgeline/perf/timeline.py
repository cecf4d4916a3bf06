"""Timeline: of every step, who did what in it and who was kept out; what ledger.py and trace.py are made from (A1).

Filled by account.py when it sums its notes up, never in the hot path. Bounded: when ENTRIES are kept, the older half
of them goes, and whoever lived then is in no ledger (it is counted). Names no phase: an activity is a number here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.state.plan import HOLDS, SequenceId
from ridgeline.state.sequence import Sequence as Asked

ENTRIES = 1 << 20  # 28 bytes each
ENTRY_COLUMNS = ("step", "sequence", "activity", "start", "tokens", "end", "rows")
STEP_COLUMNS = ("native_ns", "transfer_ns", "other_ns")  # and then one a part

Integers = npt.NDArray[np.int64]


class Ended(msgspec.Struct, frozen=True):
    """A request that is over. sequence: its number in the entries. Times on the engine's clock."""

    sequence: SequenceId
    request: str
    reason: str
    arrival_s: float
    ended_s: float
    prompt_tokens: int
    output_tokens: int
    preemptions: int
    tokens_recomputed: int
    tokens_guessed: int
    tokens_accepted: int
    entered_s: float = 0.0  # when it reached this engine, perhaps from another one
    hands_on: bool = False  # it was to go on elsewhere after its first token: so this engine saw its beginning


class Timeline(msgspec.Struct, frozen=True):
    """What was kept; travels between processes. Steps are counted as in the StepTable.

    first_step: those before are forgotten. since_s: who arrived before that time is only known in part.
    parts: names of the operator groups. entries: int32 [n][ENTRY_COLUMNS], in the order they ran; end: computed for
    good. steps: int64 [steps][STEP_COLUMNS + parts], nanoseconds: inside native calls, moving kept state, lines of
    programs besides the model, and the model's lines by part. held: int32 [n][step, sequence, index into HOLDS].
    preempted, restored: int32 [n][step, sequence]: lost its blocks before the step; kept state came back for it in it.
    idle: float64 [n][step, begin, end]: nobody had asked for anything, until shortly before the step.
    """

    first_step: int
    since_s: float
    parts: tuple[str, ...]
    entries: bytes
    steps: bytes
    held: bytes
    preempted: bytes
    restored: bytes
    idle: bytes
    ended: tuple[Ended, ...]

    def entry_rows(self) -> Integers:
        return _rows(self.entries, len(ENTRY_COLUMNS))

    def step_rows(self) -> Integers:
        """[steps from first_step on][STEP_COLUMNS + parts]"""
        return np.frombuffer(self.steps, np.int64).reshape(-1, len(STEP_COLUMNS) + len(self.parts))

    def held_rows(self) -> Integers:
        return _rows(self.held, 3)

    def preempted_rows(self) -> Integers:
        return _rows(self.preempted, 2)

    def restored_rows(self) -> Integers:
        return _rows(self.restored, 2)

    def idle_rows(self) -> npt.NDArray[np.float64]:
        return np.frombuffer(self.idle, np.float64).reshape(-1, 3)


class TimelineKeeper:
    """parts: of every line of the program "model", by name; () when nobody says which operator a line is."""

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(dict.fromkeys(parts))
        places = np.array([self.parts.index(part) for part in parts], np.int64)
        self._order = np.argsort(places, kind="stable")  # lines part by part
        self._begins = np.searchsorted(places[self._order], np.arange(len(self.parts)))
        self.reset(0.0)

    def reset(self, since_s: float) -> None:
        """Forget everything; since_s: end of the last step, 0 when there was none."""
        self._first_step, self._since_s = 0, since_s
        self._entries, self._held = array("i"), array("i")
        self._preempted, self._restored = array("i"), array("i")
        self._steps = array("q")
        self._ended: list[Ended] = []

    # -- from the account, in the order of the notes

    def add_entries(self, rows: Integers) -> None:
        """rows: [n][ENTRY_COLUMNS]"""
        self._entries.frombytes(rows.astype(np.int32).tobytes())

    def add_steps(self, first: Sequence[tuple[int, int, int]], line_ns: Sequence[npt.NDArray[np.int64] | None]) -> None:
        """first: STEP_COLUMNS of each step; line_ns: of its model lines, None when it was not timed."""
        rows = np.zeros((len(first), len(STEP_COLUMNS) + len(self.parts)), np.int64)
        rows[:, : len(STEP_COLUMNS)] = np.array(first, np.int64).reshape(-1, len(STEP_COLUMNS))
        timed = [step for step, lines in enumerate(line_ns) if lines is not None and len(lines) == len(self._order)]
        if timed and self.parts:
            lines = np.stack([line_ns[step] for step in timed])[:, self._order]  # type: ignore[misc]
            rows[timed, len(STEP_COLUMNS) :] = np.add.reduceat(lines, self._begins, axis=1)
        self._steps.frombytes(rows.tobytes())

    def hold(self, step: int, held: Iterable[tuple[SequenceId, str]]) -> None:
        for sequence, reason in held:
            self._held.extend((step, sequence, HOLDS.index(reason)))

    def preempt(self, step: int, sequence: SequenceId) -> None:
        self._preempted.extend((step, sequence))

    def restore(self, step: int, sequences: Iterable[SequenceId]) -> None:
        for sequence in sequences:
            self._restored.extend((step, sequence))

    def end(self, one: Asked, reason: str, at_s: float) -> None:
        self._ended.append(
            Ended(
                one.id, one.request.id, reason, one.arrival_s, at_s, one.tokens_prompt, one.tokens_output,
                one.preemptions, one.tokens_recomputed, one.tokens_guessed, one.tokens_accepted, one.entered_s,
                one.hands_on,
            )
        )  # fmt: skip

    def trim(self, times: Sequence[float]) -> None:
        """Forget the older half when too much is kept. times: of the StepTable, [started, ended] flat."""
        width = len(ENTRY_COLUMNS)
        if len(self._entries) <= ENTRIES * width:
            return
        first = self._entries[len(self._entries) // width // 2 * width]
        del self._steps[: (first - self._first_step) * (len(STEP_COLUMNS) + len(self.parts))]
        for kept, columns in ((self._entries, width), (self._held, 3), (self._preempted, 2), (self._restored, 2)):
            rows = np.frombuffer(kept, np.int32).reshape(-1, columns)
            gone = int(np.searchsorted(rows[:, 0], first))
            del rows
            del kept[: gone * columns]
        self._first_step, self._since_s = first, times[2 * first - 1]
        self._ended = [one for one in self._ended if one.arrival_s >= self._since_s]

    # -- read

    def timeline(self, idle: Iterable[Sequence[float]]) -> Timeline:
        """idle: [begin, end, step] of every idle gap."""
        gaps = [(step, begin, end) for begin, end, step in idle if step >= self._first_step]
        return Timeline(
            self._first_step, self._since_s, self.parts, self._entries.tobytes(), self._steps.tobytes(),
            self._held.tobytes(), self._preempted.tobytes(), self._restored.tobytes(),
            np.array(gaps, np.float64).tobytes(), tuple(self._ended),
        )  # fmt: skip


def _rows(packed: bytes, columns: int) -> Integers:
    return np.frombuffer(packed, np.int32).reshape(-1, columns).astype(np.int64)

"""Account: watches every step of an engine and keeps only numbers (A1).

Called by engine/ as its StepObserver. A step is only noted; notes are named by phase (phases.py) and summed in bulk,
when somebody reads or some have gathered; the rest is summary.py's. Refuses nothing: it never slows or stops a step.
"""

# size: what is noted of a step, summed up and read: one owner of the arrays

from __future__ import annotations

import math
import time
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.ops.batch import count_pairs
from ridgeline.ops.kv import Reach
from ridgeline.state.plan import Entry, SequenceId, StepPlan, StepResult
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import LoadBlock

from .overlap import covered_s
from .phases import DRAFT, PHASES, UNKNOWN, Phases
from .process_counters import ProcessCounters, read_counters
from .timeline import Timeline, TimelineKeeper

MODEL = "model"
COLUMNS = ("step", "phase", "tokens", "logit_rows", "sequences", "pairs", "kv_tokens")
SHAPE = 7  # numbers of an entry: step, sequence, start, tokens, end, rows, chosen
NOTED = 512  # steps and entries noted at most before they are summed: a few hundred kilobytes


class OtherWork(msgspec.Struct, frozen=True):
    """What a program besides the model did. line_ns: int64 [lines], summed."""

    steps: int
    entries: int
    tokens: int
    line_ns: bytes

    @property
    def seconds(self) -> float:
        return float(np.frombuffer(self.line_ns, np.int64).sum() * 1e-9)


class StepTable(msgspec.Struct, frozen=True):
    """What an Account saw; travels between processes. Columns are packed little numbers, not text.

    shapes: int64 [rows][len(COLUMNS) + 2 per reach], one row per step and phase present in it (a BatchShape).
    times: float64 [steps][2], started and ended on the engine's clock, in the order in which they ended.
    shares: float64 [steps], of the machine that each step had; empty: all of it. Else times may overlap, and every
    other second here is one of the whole machine: a step's time is its share of the time it ran.
    line_ns: int64 [2^phases][lines], nanoseconds by Program line, summed over steps with the same set of phases.
    host_s: between steps while a request was waiting or running; idle_s: nobody had asked for anything.
    others: work of programs besides the model, by name; it lies inside the steps' times.
    guessed, accepted: tentative tokens judged, and those that stayed (I1).
    experts: float64 [steps], distinct experts that ran in a layer on average; NaN where not counted (K8).
    """

    reaches: tuple[Reach, ...]
    shapes: bytes
    times: bytes
    line_ns: bytes
    host_s: float
    idle_s: float
    native_calls: int
    finished: dict[str, int]
    preemptions: int
    tokens_recomputed: int
    others: dict[str, OtherWork] = {}
    guessed: int = 0
    accepted: int = 0
    tokens_cached: int = 0
    transfer_ns: int = 0
    native_ns: int = 0  # inside native calls; the rest of the steps' time is this process's own
    experts: bytes = b""
    memory: dict[str, Any] = {}  # what the memory reports, since the engine's start
    choices: dict[str, Any] = {}  # schedule.choose: the way of making steps now, and every switch with its reason
    timeline: Timeline | None = None  # who did what in which step
    account_ns: int = 0  # noting, and summing up between steps; what reading costs is the reader's
    shares: bytes = b""
    process: ProcessCounters | None = None  # what the system did to the engine's process meanwhile
    begun_s: float = 0.0  # end of the step before the first, which is on the page before; 0: there is none

    def expert_counts(self) -> npt.NDArray[np.float64] | None:
        """[steps]; None unless every step counted them."""
        counts = np.frombuffer(self.experts, np.float64)
        return None if not counts.size or np.isnan(counts).any() else counts

    def shape_rows(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self.shapes, np.int64).reshape(-1, len(COLUMNS) + 2 * len(self.reaches))

    def step_times(self) -> npt.NDArray[np.float64]:
        return np.frombuffer(self.times, np.float64).reshape(-1, 2)

    def step_shares(self) -> npt.NDArray[np.float64]:
        """[steps]"""
        return np.frombuffer(self.shares, np.float64) if self.shares else np.ones(len(self.step_times()))

    def step_seconds(self) -> npt.NDArray[np.float64]:
        """[steps] seconds of the whole machine."""
        times = self.step_times()
        return np.asarray((times[:, 1] - times[:, 0]) * self.step_shares(), np.float64)

    @property
    def unshared_s(self) -> float:
        """Of host_s: a step ran, and the rest of the machine had none."""
        return max(0.0, covered_s(self.step_times()) - float(self.step_seconds().sum())) if self.shares else 0.0

    def lines(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self.line_ns, np.int64).reshape(2 ** len(PHASES), -1)


class Account:
    """Implements state.ports.StepObserver."""

    def __init__(self, reaches: tuple[Reach, ...] = (), parts: tuple[str, ...] = ()) -> None:
        """parts: the operator group of every line of the program "model"; without them the timeline has none."""
        self._reaches = reaches
        self._keeper = TimelineKeeper(parts)
        self._last_end: float | None = None
        self.reset()  # reads the process's counters, which table() reads again: never in a step

    def reset(self) -> None:
        """Forget everything seen."""
        self._phases = Phases()
        self._notes: list[tuple[Any, ...]] = []  # steps and finished sequences in order, not summed yet
        self._noted = 0
        self._running: dict[SequenceId, int] = {}  # those met: the idle gap that ended with their first step, or -1
        since_s, self._last_end = self._last_end, None
        self._clear(since_s)

    def turn(self) -> None:
        """Begin a new page: the steps go (to whoever asked for the table), who runs and how far is known still. Pages
        one after the other are the account, and none grows for ever (pages.py)."""
        self._sum_up()
        self._clear(self._last_end)
        self._running = dict.fromkeys(self._running, -1)

    def _clear(self, since_s: float | None) -> None:
        self._begun_s = self._last_end or 0.0
        self._keeper.reset(since_s or 0.0)
        self._shapes = array("q")
        self._times = array("d")
        self._shares = array("d")
        self._experts = array("d")
        self._line_ns: npt.NDArray[np.int64] | None = None
        self._idle: list[list[float]] = []  # [begin, end, step]; end moves back to the arrival that ended it
        self._native_calls = 0
        self._finished: dict[str, int] = {}
        self._preemptions = 0
        self._tokens_recomputed = 0
        self._others: dict[str, list[int]] = {}  # [steps, entries, tokens]
        self._other_ns: dict[str, npt.NDArray[np.int64]] = {}
        self._spent_ns = 0
        self._guessed = self._accepted = self._tokens_cached = self._transfer_ns = self._native_ns = 0
        self._counters = read_counters()

    # -- StepObserver

    def on_step(self, plan: StepPlan, result: StepResult) -> None:
        began_ns = time.perf_counter_ns()
        self._notes.append((
            plan.entries, result.started_s, result.ended_s, result.line_ns, result.native_calls, result.native_ns,
            result.transfer_ns, result.experts, result.others, result.share, plan.released, plan.held,
            _restored(plan) if plan.transfers else (),
        ))  # fmt: skip
        self._noted += 1 + len(plan.entries)
        if self._noted >= NOTED:
            self._sum_up()
        self._spent_ns += time.perf_counter_ns() - began_ns

    def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None:
        self._notes.append((sequence, reason, at_s))

    # -- what was seen

    @property
    def steps(self) -> int:
        self._sum_up()
        return len(self._times) // 2

    def table(self) -> StepTable:
        """Everything seen so far, as numbers that travel."""
        self._sum_up()
        is_shared = min(self._shares, default=1.0) < 1.0
        gaps_s = sum(self._times[i] - self._times[i - 1] for i in range(2, len(self._times), 2))
        if is_shared:
            begun, ended = self._times[::2], self._times[1::2]
            ran_s = sum((e - b) * share for b, e, share in zip(begun, ended, self._shares, strict=True))
            gaps_s = max(ended) - (self._begun_s or min(begun)) - ran_s
        else:
            gaps_s += self._times[0] - self._begun_s if self._begun_s and self._times else 0.0
        idle_s = sum(end - begin for begin, end, _ in self._idle)
        lines = self._line_ns if self._line_ns is not None else np.zeros((2 ** len(PHASES), 0), np.int64)
        return StepTable(
            self._reaches,
            self._shapes.tobytes(),
            self._times.tobytes(),
            lines.tobytes(),
            max(0.0, gaps_s - idle_s),
            idle_s,
            self._native_calls,
            dict(self._finished),
            self._preemptions,
            self._tokens_recomputed,
            {
                name: OtherWork(steps, entries, tokens, self._other_ns.get(name, np.zeros(0, np.int64)).tobytes())
                for name, (steps, entries, tokens) in self._others.items()
            },
            self._guessed,
            self._accepted,
            self._tokens_cached,
            self._transfer_ns,
            self._native_ns,
            self._experts.tobytes(),
            timeline=self._keeper.timeline(self._idle),
            account_ns=self._spent_ns,
            shares=self._shares.tobytes() if is_shared else b"",
            process=read_counters().since(self._counters),
            begun_s=self._begun_s,
        )

    # -- inside

    def _sum_up(self) -> None:
        """Every note becomes numbers, in order; shapes become one row for every step and phase."""
        notes, self._notes, self._noted = self._notes, [], 0
        shapes, others = array("q"), array("q")
        parts_ns: list[tuple[int, int, int]] = []
        lines: list[npt.NDArray[np.int64] | None] = []
        first = len(self._times) // 2
        for note in notes:
            if len(note) == 3:
                self._sum_finish(*note)
                continue
            entries, started_s, ended_s, line_ns, native_calls, native_ns, transfer_ns, experts, other_ns, share = note[
                :10
            ]
            step = len(self._times) // 2
            if share < 1.0:
                ended_s, line_ns = self._settle(started_s, ended_s, line_ns, share)
                native_ns, transfer_ns = int(native_ns * share), int(transfer_ns * share)
            self._shares.append(share)
            self._sum_moves(step, *note[10:])
            self._sum_entries(entries, step, self._gap(started_s, step), shapes, others)
            self._times.extend((started_s, ended_s))
            self._experts.append(math.nan if experts is None else experts)
            self._last_end = ended_s
            self._native_calls += native_calls
            self._native_ns += native_ns
            self._transfer_ns += transfer_ns
            lines.append(line_ns)
            parts_ns.append((native_ns, transfer_ns, self._sum_others(other_ns) if other_ns else 0))
        if lines:
            self._keeper.add_steps(parts_ns, lines)
        mixes = self._sum_shapes(np.array(shapes, np.int64).reshape(-1, SHAPE), others, first)
        for place, line_ns in enumerate(lines):
            if line_ns is None:
                continue
            if self._line_ns is None:
                self._line_ns = np.zeros((2 ** len(PHASES), len(line_ns)), np.int64)
            self._line_ns[mixes[place]] += line_ns
        self._phases.keep(self._running)
        self._keeper.trim(self._times)

    def _settle(
        self, started_s: float, ended_s: float, line_ns: npt.NDArray[np.int64] | None, share: float
    ) -> tuple[float, npt.NDArray[np.int64] | None]:
        """(ended_s, lines) of a step beside another one: ends rise, and lines are of the whole machine."""
        for idle in reversed(self._idle):  # somebody was served, as it turns out
            if idle[1] <= started_s:
                break
            idle[1] = max(idle[0], started_s)
        return max(ended_s, self._last_end or ended_s), None if line_ns is None else (line_ns * share).astype(np.int64)

    def _sum_moves(
        self, step: int, released: tuple[SequenceId, ...], held: tuple[tuple[SequenceId, str], ...],
        restored: tuple[SequenceId, ...],
    ) -> None:  # fmt: skip
        """Who lost its blocks before the step, who was tried in vain, and for whom kept state came back."""
        for sequence in released:
            if sequence in self._running:  # it has not ended: others needed its blocks
                self._keeper.preempt(step, sequence)
        if held:
            self._keeper.hold(step, held)
        if restored:
            self._keeper.restore(step, restored)

    def _sum_others(self, other_ns: Mapping[str, npt.NDArray[np.int64]]) -> int:
        """Nanoseconds of all programs besides the model in one step."""
        for name, lines in other_ns.items():
            self._other_ns[name] = self._other_ns[name] + lines if name in self._other_ns else lines
            self._others.setdefault(name, [0, 0, 0])[0] += 1
        return sum(int(lines.sum()) for lines in other_ns.values())

    def _sum_entries(
        self, entries: tuple[Entry, ...], step: int, gap: int, shapes: array[int], others: array[int]
    ) -> None:
        """The model's entries go into `shapes`, those of other programs are added up and go into `others`. gap: that
        the step ended."""
        noted: list[int] = []
        for entry in entries:
            if entry.program != MODEL:
                other = self._others.setdefault(entry.program, [0, 0, 0])
                count = len(entry.tokens)
                other[1], other[2] = other[1] + 1, other[2] + count
                end = entry.start + count - entry.tentative
                others.extend((step, entry.sequence, DRAFT, entry.start, count, end, len(entry.rows)))
                continue
            if entry.sequence not in self._running:
                self._running[entry.sequence] = gap
                if 0 <= entry.given <= entry.start:
                    self._phases.meet(entry.sequence, entry.start, entry.given)
            rows, tokens = entry.rows, len(entry.tokens)
            chosen = rows[-1].position if rows and rows[-1].target < 0 else UNKNOWN
            end = entry.start + tokens - entry.tentative  # what was guessed may be computed again
            noted += (step, entry.sequence, entry.start, tokens, end, len(rows), chosen)
        shapes += array("q", noted)

    def _sum_finish(self, sequence: Sequence, reason: str, at_s: float) -> None:
        self._keeper.end(sequence, reason, at_s)
        gap = self._running.pop(sequence.id, -1)
        if gap >= 0:
            idle = self._idle[gap]
            idle[1] = max(idle[0], min(idle[1], sequence.arrival_s))
        self._finished[reason] = self._finished.get(reason, 0) + 1
        self._preemptions += sequence.preemptions
        self._tokens_recomputed += sequence.tokens_recomputed
        self._guessed += sequence.tokens_guessed
        self._accepted += sequence.tokens_accepted
        self._tokens_cached += sequence.tokens_cached

    def _sum_shapes(self, shapes: npt.NDArray[np.int64], others: array[int], first: int) -> dict[int, int]:
        """The set of phases of every step, counted from `first`. others: entries of other programs, for the keeper."""
        if not len(shapes):
            self._keep(np.zeros((0, SHAPE), np.int64), others)
            return Counter()
        step, sequence, start, tokens, end, rows, chosen = np.ascontiguousarray(shapes.T)
        named = self._phases.name(sequence, start, end, chosen)
        activity = Phases.refine(named, start, tokens, end)
        self._keep(np.stack((step, sequence, activity, start, tokens, end, rows), 1), others)
        place = (step - first) * len(PHASES) + named
        sums = [tokens, rows, np.ones_like(tokens), *count_pairs(start, tokens)]
        for reach in self._reaches:
            sums += count_pairs(start, tokens, reach)
        columns = [np.bincount(place, column) for column in sums]  # exact: far below 2^53
        present = np.flatnonzero(columns[0])
        steps, phases = np.divmod(present, len(PHASES))
        added = np.stack([steps + first, phases, *(column[present] for column in columns)], 1)
        self._shapes.frombytes(added.astype(np.int64).tobytes())
        mixes: Counter[int] = Counter()
        for at, phase in zip(steps.tolist(), phases.tolist(), strict=True):
            mixes[at] |= 1 << phase
        return mixes

    def _keep(self, rows: npt.NDArray[np.int64], others: array[int]) -> None:
        """Entries of the model and of other programs, by step."""
        if others:
            both = np.concatenate([np.array(others, np.int64).reshape(-1, SHAPE), rows])
            rows = both[np.argsort(both[:, 0], kind="stable")]
        self._keeper.add_entries(rows)

    def _gap(self, started_s: float, step: int) -> int:
        """Index of the idle gap that this step ends, -1 when somebody was being served."""
        if self._last_end is None or self._running or started_s <= self._last_end:
            return -1
        self._idle.append([self._last_end, started_s, step])
        return len(self._idle) - 1


def _restored(plan: StepPlan) -> tuple[SequenceId, ...]:
    """For whom saved blocks come back in this step (rare, so it is found out at once: block tables change later)."""
    loads = {(move.program, move.group, move.block) for move in plan.transfers if isinstance(move, LoadBlock)}
    if not loads:
        return ()
    return tuple(
        entry.sequence
        for entry in plan.entries
        if any(
            (entry.program, group, block) in loads
            for group, table in enumerate(entry.blocks)
            for block in table.tolist()
        )
    )

"""Account: watches every step of an engine and keeps only numbers; the one place where phases exist (A1).

Owns the columns and the rule that names a phase. Called by engine/ as its StepObserver; everything that is more than
an addition is done later, in summary.py. Refuses nothing: it must never slow or stop a step.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.ops.batch import count_pairs
from ridgeline.ops.kv import Reach
from ridgeline.state.plan import Entry, SequenceId, StepPlan, StepResult
from ridgeline.state.sequence import Sequence

PHASES = ("prefill", "decode", "recompute")
PREFILL, DECODE, RECOMPUTE = range(len(PHASES))
COLUMNS = ("step", "phase", "tokens", "logit_rows", "sequences", "pairs", "kv_tokens")


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
    times: float64 [steps][2], started and ended on the engine's clock.
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

    def expert_counts(self) -> npt.NDArray[np.float64] | None:
        """[steps]; None unless every step counted them."""
        counts = np.frombuffer(self.experts, np.float64)
        return None if not counts.size or np.isnan(counts).any() else counts

    def shape_rows(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self.shapes, np.int64).reshape(-1, len(COLUMNS) + 2 * len(self.reaches))

    def step_times(self) -> npt.NDArray[np.float64]:
        return np.frombuffer(self.times, np.float64).reshape(-1, 2)

    def lines(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self.line_ns, np.int64).reshape(2 ** len(PHASES), -1)


@dataclass(slots=True)
class _Progress:
    """What must be known of a sequence to name the phase of its next entry."""

    prompt: int | None = None  # position of the first chosen token
    computed: int = 0  # positions below were computed once already
    gap: int = -1  # the idle gap that ended with its first step


class Account:
    """Implements state.ports.StepObserver.

    An entry is `recompute` when it starts at a position computed before (preemption, or no cache at all), `decode` when
    it starts at or after the prompt's end, else `prefill`. The prompt's end is the position of the first token chosen
    for the sequence: until then everything is prefill.
    """

    def __init__(self, reaches: tuple[Reach, ...] = ()) -> None:
        self._reaches = reaches
        self.reset()

    def reset(self) -> None:
        """Forget everything seen; sequences that are running are met again as prefill."""
        self._shapes = array("q")
        self._times = array("d")
        self._experts = array("d")
        self._line_ns: npt.NDArray[np.int64] | None = None
        self._progress: dict[SequenceId, _Progress] = {}
        self._idle: list[list[float]] = []  # [begin, end]; end moves back to the arrival that ended it
        self._host_s = 0.0
        self._last_end: float | None = None
        self._native_calls = 0
        self._finished: dict[str, int] = {}
        self._preemptions = 0
        self._tokens_recomputed = 0
        self._others: dict[str, list[int]] = {}  # [steps, entries, tokens]
        self._other_ns: dict[str, npt.NDArray[np.int64]] = {}
        self._guessed = self._accepted = self._tokens_cached = self._transfer_ns = self._native_ns = 0

    # -- StepObserver

    def on_step(self, plan: StepPlan, result: StepResult) -> None:
        gap = self._gap(result.started_s)
        sums: dict[int, list[int]] = {}
        self._transfer_ns += result.transfer_ns
        self._native_ns += result.native_ns
        for name, line_ns in result.others.items():
            self._other_ns[name] = self._other_ns[name] + line_ns if name in self._other_ns else line_ns
            self._others.setdefault(name, [0, 0, 0])[0] += 1
        for entry in plan.entries:
            if entry.program != "model":
                other = self._others.setdefault(entry.program, [0, 0, 0])
                other[1], other[2] = other[1] + 1, other[2] + len(entry.tokens)
                continue
            phase = self._phase(entry, gap)
            row = sums.get(phase)
            if row is None:
                row = sums[phase] = [0] * (5 + 2 * len(self._reaches))
            self._add(row, entry)
        step = len(self._times) // 2
        mix = 0
        for phase, row in sums.items():
            mix |= 1 << phase
            self._shapes.extend((step, phase, *row))
        self._times.extend((result.started_s, result.ended_s))
        self._experts.append(math.nan if result.experts is None else result.experts)
        self._last_end = result.ended_s
        self._native_calls += result.native_calls
        if result.line_ns is not None:
            if self._line_ns is None:
                self._line_ns = np.zeros((2 ** len(PHASES), len(result.line_ns)), np.int64)
            self._line_ns[mix] += result.line_ns

    def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None:
        progress = self._progress.pop(sequence.id, None)
        if progress is not None and progress.gap >= 0:
            idle = self._idle[progress.gap]
            idle[1] = max(idle[0], min(idle[1], sequence.arrival_s))
        self._finished[reason] = self._finished.get(reason, 0) + 1
        self._preemptions += sequence.preemptions
        self._tokens_recomputed += sequence.tokens_recomputed
        self._guessed += sequence.tokens_guessed
        self._accepted += sequence.tokens_accepted
        self._tokens_cached += sequence.tokens_cached

    # -- what was seen

    @property
    def steps(self) -> int:
        return len(self._times) // 2

    def table(self) -> StepTable:
        """Everything seen so far, as numbers that travel."""
        gaps_s = sum(self._times[i] - self._times[i - 1] for i in range(2, len(self._times), 2))
        idle_s = sum(end - begin for begin, end in self._idle)
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
        )

    # -- inside

    def _gap(self, started_s: float) -> int:
        """Index of the idle gap that this step ends, -1 when somebody was being served."""
        if self._last_end is None or self._progress:
            return -1
        self._idle.append([self._last_end, started_s])
        return len(self._idle) - 1

    def _phase(self, entry: Entry, gap: int) -> int:
        progress = self._progress.get(entry.sequence)
        if progress is None:
            progress = self._progress[entry.sequence] = _Progress(computed=entry.start, gap=gap)
        end = entry.start + len(entry.tokens) - entry.tentative  # what was guessed may be computed again
        if entry.start < progress.computed:
            phase = RECOMPUTE
        elif progress.prompt is not None and entry.start >= progress.prompt:
            phase = DECODE
        else:
            phase = PREFILL
        if progress.prompt is None and entry.rows and entry.rows[-1].target < 0:
            progress.prompt = entry.rows[-1].position
        progress.computed = max(progress.computed, end)
        return phase

    def _add(self, row: list[int], entry: Entry) -> None:
        tokens, before = len(entry.tokens), entry.start
        row[0] += tokens
        row[1] += len(entry.rows)
        row[2] += 1
        row[3] += tokens * before + tokens * (tokens + 1) // 2
        row[4] += before + tokens
        for index, reach in enumerate(self._reaches):
            pairs, kept = count_pairs(before, tokens, reach)
            row[5 + 2 * index] += pairs
            row[6 + 2 * index] += kept

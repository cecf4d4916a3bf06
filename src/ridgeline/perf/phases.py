"""Phases: names what entries were, many steps at once; the one place where phases exist (A1).

Called by account.py with what it noted of the steps. Knows of a sequence how far it was computed and where its prompt
ended; refuses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.state.plan import SequenceId

PHASES = ("prefill", "decode", "recompute")
PREFILL, DECODE, RECOMPUTE = range(len(PHASES))
ACTIVITIES = (*PHASES, "draft", "verify")  # what a step was to one request: a finer cut of the same
DRAFT, VERIFY = range(len(PHASES), len(ACTIVITIES))
TOLD = ("prefill", "decode", "draft", "verify", "recompute")  # the same, in the order in which they are told
UNKNOWN = 1 << 40  # no position is as large

Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class Progress:
    """What must be known of a sequence to name the phase of its next entry."""

    computed: int  # positions below were computed once already
    prompt: int = UNKNOWN  # position of the first chosen token


class Phases:
    """An entry is `recompute` when it starts at a position computed before (preemption, or no cache at all), `decode`
    when it starts at or after the prompt's end, else `prefill`. The prompt's end is the position of the first token
    chosen for the sequence: until then everything is prefill; `meet` says it of one that others have begun."""

    def __init__(self) -> None:
        self._progress: dict[SequenceId, Progress] = {}

    def name(self, sequence: Integers, start: Integers, end: Integers, chosen: Integers) -> Integers:
        """Phases [entries], entries in the order they ran. end: what is computed for good then; chosen: position of
        the token an entry chose, UNKNOWN where it chose none."""
        names, first, place = np.unique(sequence, return_index=True, return_inverse=True)
        met = [self._met(int(name), int(start[at])) for name, at in zip(names, first, strict=True)]
        order = np.argsort(place, kind="stable")  # sequence by sequence, each in its order
        group, begins = place[order], np.flatnonzero(np.diff(place[order], prepend=-1))
        computed = _before(end[order], group, begins, np.array([one.computed for one in met]), np.maximum)
        prompt = _before(chosen[order], group, begins, np.array([one.prompt for one in met]), np.minimum)
        start = start[order]
        phases = np.where(start < computed, RECOMPUTE, np.where(start >= prompt, DECODE, PREFILL))
        lasts = np.append(begins[1:], len(order)) - 1
        for one, last in zip(met, lasts.tolist(), strict=True):
            one.computed = max(int(computed[last]), int(end[order[last]]))
            one.prompt = min(int(prompt[last]), int(chosen[order[last]]))
        named = np.empty_like(phases)
        named[order] = phases
        return named

    @staticmethod
    def refine(phases: Integers, start: Integers, tokens: Integers, end: Integers) -> Integers:
        """Activities [entries] of the model's entries: an answer's step that judges guesses is `verify`."""
        return np.where((phases == DECODE) & (end < start + tokens), VERIFY, phases)

    def meet(self, sequence: SequenceId, start: int, prompt: int) -> None:
        """One that was not seen before: where its first entry starts, and where its prompt ends."""
        self._progress.setdefault(sequence, Progress(start, prompt))

    def keep(self, running: dict[SequenceId, int]) -> None:
        """Forget all but these sequences."""
        self._progress = {name: one for name, one in self._progress.items() if name in running}

    def _met(self, sequence: SequenceId, start: int) -> Progress:
        """One met for the first time may have had its beginning computed by others."""
        return self._progress.setdefault(sequence, Progress(start))


def _before(values: Integers, group: Integers, begins: Integers, initial: Integers, pick: np.ufunc) -> Integers:
    """Of `values` that lie group by group: the largest (or least) of the group's initial value and all before it."""
    shifted = np.empty_like(values)
    shifted[1:] = values[:-1]
    shifted[begins] = initial
    # Runs over all groups at once: an offset larger than any value keeps one from reaching into the next.
    offset = group * (2 * UNKNOWN if pick is np.maximum else -2 * UNKNOWN)
    return np.asarray(pick.accumulate(shifted + offset) - offset, np.int64)

"""Running a study: warm-up, the cells that fit into the time, interleaved, then sweeps and retrieval; all resumable.

Called by cli/ with a way to open engines (LLM stands above this room). Keeps every record the moment it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.ops.program import Program
from ridgeline.perf.operators import count_phase, decode_shape, prefill_shape
from ridgeline.run.machine import Machine

from . import rag
from .cells import VARIETY, Cell, fitting, interleaved, main_cells, predicted_s
from .measure import VERSION, Book, Header, Ids, Subject, measure_cell, now, warm_up
from .points import CORE, GROUPS, OTHER
from .sweeps import Open, Sweep

COUNTED = 512  # tokens at which intensities are counted
SHARES = {"main": 0.6, "rag": 0.75, "sweeps": 1.0}  # of the time, by when each part must have ended
SWEEP_REPEATS, RAG_REPEATS = 3, 2


class Asked(msgspec.Struct, frozen=True):
    """What the study was asked. parts: of "main", "sweeps", "rag"; texts: prompts whose answers end by themselves."""

    model: str
    options: dict[str, Any]
    minutes: float
    texts: tuple[Ids, ...] = ()
    parts: tuple[str, ...] = tuple(SHARES)
    repeats: int = 5


class Budget:
    """Time from when it is made; spent_s: what earlier runs of the same study took of it."""

    def __init__(self, minutes: float, spent_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin, self.whole_s = clock, clock() - spent_s, 60 * minutes

    def left_s(self, share: float) -> float:
        """Until `share` of the whole is over."""
        return self._begin + share * self.whole_s - self._clock()


Tell = Callable[[str, float], None]  # what is measured now, share of the whole study done (0 to 1)


class Study:
    """One study; `run` measures what the book lacks."""

    def __init__(self, asked: Asked, book: Book, open_engine: Open, tell: Tell = lambda what, share: None) -> None:
        self.asked, self.book = asked, book
        self._open, self._tell = open_engine, tell
        self._budget = Budget(asked.minutes, book.spent_s())

    def run(self, machine: Machine, program_of: Callable[[Subject], Program], folder: Path) -> None:
        """machine: the ceilings all cells are judged by (resumed: the book's). folder: for the sweeps' shapes."""
        parts = self.asked.parts
        with self._open(self.asked.model, self.asked.options) as subject:
            machine = self._begin(subject, machine, program_of(subject))
            if "main" in parts:
                self._main(subject, machine, program_of(subject))
            if "rag" in parts:
                self._retrieval(subject, machine)
        if "sweeps" in parts:
            told = self._progress("sweeps")
            sweep = Sweep(self._open, self.book, machine, SWEEP_REPEATS, told)
            sweep.mixtures(folder)
            sweep.sizes()
            sweep.threads(self.asked.model, self.asked.options, machine.threads)

    def _begin(self, subject: Subject, machine: Machine, program: Program) -> Machine:
        self._tell("warming up", 0.0)
        warm_s, cut = warm_up(subject)
        self.book.begin(
            Header(
                VERSION, self.asked.model, {name: str(value) for name, value in self.asked.options.items()},
                subject.facts, machine.fingerprint, machine, now(), warm_s, cut, intensities(program, machine),
            )
        )  # fmt: skip
        return self.book.header.ceilings if self.book.header else machine

    def _main(self, subject: Subject, machine: Machine, program: Program) -> None:
        facts = subject.facts
        cells = main_cells(facts.context, facts.max_sequences, bool(self.asked.texts))
        costs = {cell.key: predicted_s(cell, program, machine) for cell in cells}
        # of all parts that are asked for, the main one takes its share; ours are estimates: keep a fifth in hand
        room_s = 0.8 * self._budget.whole_s * (SHARES["main"] if len(self.asked.parts) > 1 else 1.0)
        chosen, repeats = fitting(cells, costs, room_s, self.asked.repeats)
        told = self._progress("main")
        once = {cell for cell in chosen if cell.group == VARIETY}  # another seed each; one run each
        for cell, repeat in interleaved(chosen, repeats):
            if self.book.has(cell, repeat) or (cell in once and repeat):
                continue
            if not told(cell):
                return
            text = self.asked.texts[int(cell.variant) % len(self.asked.texts)] if cell.natural else ()
            record = measure_cell(subject, cell, repeat, machine, predicted_s=costs[cell.key], text=text)
            self.book.add(record)

    def _retrieval(self, subject: Subject, machine: Machine) -> None:
        wanted = rag.cells(rag.most_vectors())
        if subject.facts.context < wanted[0].input + wanted[0].output:
            return
        rag.study_retrieval(subject, machine, self.book, wanted, RAG_REPEATS, self._progress("rag"))

    def _progress(self, part: str) -> Callable[[Cell], bool]:
        """Tells of a cell; False when the part's time is up."""

        def told(cell: Cell) -> bool:
            left_s = self._budget.left_s(SHARES[part])
            self._tell(cell.key, min(1.0, 1 - self._budget.left_s(1.0) / self._budget.whole_s))
            return left_s > 0

        return told


def intensities(program: Program, machine: Machine) -> dict[str, dict[str, float]]:
    """Counted FLOPs per byte of weights and KV, by phase and operator class, at COUNTED tokens."""
    shapes = {"prefill": prefill_shape(program, 1, COUNTED), "decode": decode_shape(program, 1, COUNTED)}
    found: dict[str, dict[str, float]] = {}
    for phase, shape in shapes.items():
        sums: dict[str, list[float]] = {}
        for row in count_phase(phase, program, machine, shape).rows:
            group = CORE if row.name == "attend" else GROUPS.get(row.name, OTHER)
            flops, moved = sums.setdefault(group, [0.0, 0.0])
            sums[group] = [flops + row.flops, moved + row.weight_bytes + row.kv_bytes]
        found[phase] = {group: flops / moved for group, (flops, moved) in sums.items() if moved}
    return found


def questions() -> Sequence[str]:
    """Things to ask a model that may answer as long as it likes."""
    return (
        "Why is the sky blue?", "Name three fruits.", "Write a haiku about rain.", "What is a prime number?",
        "How do I boil an egg?", "Say hello in French.", "Explain recursion to a child.", "Where is Lima?",
        "List the planets.", "Who wrote Hamlet?",
    )  # fmt: skip

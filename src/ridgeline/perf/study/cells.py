"""Cells: what the study measures, and which of it fits into the time there is (A19).

Pure plans; runs nothing. Every cell has a key, so that a study that was broken off knows what it has.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import Machine

GRID, LENGTHS, BATCH, VARIETY, SIZES, MOE, THREADS, RAG = (
    "grid", "lengths", "batch", "variety", "sizes", "moe", "threads", "rag",
)  # fmt: skip
INPUTS = (16, 64, 256, 512, 1024)
OUTPUTS = (16, 64, 128)
UNCACHED = (64, 128, 256, 384, 512, 768, 1024)
LONG = (2048, 4096)
BATCHES = (1, 2, 4, 8, 16, 32)
VECTORS = (1_000, 10_000, 100_000, 1_000_000)
WIDTH = 384  # of the embeddings that are searched (MiniLM's)
NATURAL = 10  # answers of natural length
TAIL = 8  # tokens decoded behind each prompt of the lengths: enough for operator times at that context
OVERHEAD_S = 0.06  # of a cell besides its steps: two reads of the account, and the client


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measurement. cached: tokens of the input that another request computed before; variant: what else differs
    (a shape's name, an index, a number of threads)."""

    group: str
    input: int
    output: int
    batch: int = 1
    cached: int = 0
    natural: bool = False  # sampled, ended by the model's own stop token
    vectors: int = 0
    variant: str = ""

    @property
    def key(self) -> str:
        parts = [self.group, f"in{self.input}", f"out{self.output}", f"batch{self.batch}"]
        parts += [f"{name}{value}" for name, value in (("cached", self.cached), ("vectors", self.vectors)) if value]
        return "/".join([*parts, *(["natural"] if self.natural else []), *([self.variant] if self.variant else [])])


def main_cells(context: int, sequences: int, is_natural: bool) -> list[Cell]:
    """What is measured on the studied model, the most telling first. context, sequences: the engine's limits."""
    cells = [Cell(LENGTHS, tokens, TAIL) for tokens in (*UNCACHED, *LONG)]
    cells += [Cell(LENGTHS, tokens + cached, TAIL, cached=cached) for tokens in UNCACHED[:5:2] for cached in (256, 512)]
    cells += [Cell(GRID, tokens, output) for output in OUTPUTS for tokens in INPUTS]
    cells += [Cell(BATCH, 32, 24, batch=batch) for batch in BATCHES]
    cells += [Cell(GRID, tokens, OUTPUTS[0], batch=4) for tokens in INPUTS[1:4]]
    if is_natural:
        cells += [Cell(VARIETY, 0, 96, natural=True, variant=str(index)) for index in range(NATURAL)]
    return [
        cell
        for cell in cells
        if max(cell.input, 64) + cell.output <= context and cell.batch <= sequences and cell.cached % BLOCK_TOKENS == 0
    ]


def predicted_s(cell: Cell, program: Program, machine: Machine) -> float:
    """Our own estimate of a cell's steps (A11): the prompts in one step each, then one token a step."""
    estimator, reaches = Estimator(program, machine), program.reaches
    fresh = max(1, (cell.input or 64) - cell.cached)
    prompt = BatchShape.of([(cell.cached, fresh)], 1, reaches)
    middle = BatchShape.of([(cell.input + cell.output // 2, 1)] * cell.batch, cell.batch, reaches)
    seconds = cell.batch * estimator.step_seconds(prompt) + (cell.output - 1) * estimator.step_seconds(middle)
    if cell.cached:
        seconds += estimator.step_seconds(BatchShape.of([(0, cell.cached)], 1, reaches))
    return float(np.asarray(seconds))


def fitting(cells: Iterable[Cell], costs_s: dict[str, float], budget_s: float, repeats: int) -> tuple[list[Cell], int]:
    """The cells, and how often each is measured, that fit into `budget_s` by the estimates; at least one of each group.

    Repeats are given up first (down to 2), then the most costly cells.
    """
    chosen = list(cells)

    def whole_s(times: int) -> float:
        return times * sum(costs_s[cell.key] + OVERHEAD_S for cell in chosen)

    times = repeats
    while times > 2 and whole_s(times) > budget_s:
        times -= 1
    while whole_s(times) > budget_s:
        groups = [cell.group for cell in chosen]
        spare = [cell for cell in chosen if groups.count(cell.group) > 1]
        if not spare:
            break
        chosen.remove(max(spare, key=lambda cell: costs_s[cell.key]))
    return chosen, times


def interleaved(cells: list[Cell], repeats: int) -> list[tuple[Cell, int]]:
    """Every cell once, then all again backwards, and so on: what drifts, drifts for all (EXPLAIN 12)."""
    rounds = [cells if repeat % 2 == 0 else cells[::-1] for repeat in range(repeats)]
    return [(cell, repeat) for repeat, each in enumerate(rounds) for cell in each]

"""Where every intermediate of a Program lives in one arena, by liveness; planned once, at bind time.

Owns offsets only; the bytes belong to the runner.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ridgeline.ops.op import TOKENS, Value
from ridgeline.ops.program import Program

ALIGNMENT = 64
GROUP = 32  # elements sharing an activation scale; equals RL_GROUP of the native kernels


@dataclass(frozen=True)
class StepLimits:
    """The largest step a runner is built for."""

    tokens: int
    logit_rows: int
    sequences: int
    context: int  # positions of one sequence

    def rows(self, value: Value) -> int:
        return self.tokens if value.rows == TOKENS else self.logit_rows


@dataclass(frozen=True)
class Arena:
    """Byte offsets by value id: f32 buffers, and quantised copies for integer linears."""

    offsets: Mapping[int, int]
    quantised: Mapping[int, int]
    nbytes: int
    work: Mapping[int, int]  # of lines that need room while they run, by the id of their output


def quantised_row_bytes(width: int) -> int:
    """Two int8 planes and six words per group of 32 (kernels/cpp/quantise.h)."""
    return _align(width // GROUP * (2 * GROUP + 24))


def experts_work_bytes(rows: int, hidden: int) -> int:
    """Hidden values of `rows` rows sent to experts: both halves, their product, its quantised copy (experts.cpp)."""
    return _align(rows * 2 * hidden * 4) + _align(rows * hidden * 4) + rows * quantised_row_bytes(hidden)


def fused_adds(program: Program, bodies: tuple[str, ...]) -> dict[int, int]:
    """{linear line: add line} for native groups whose residual sum is the linear's epilogue."""
    return {
        start: start + 1
        for start, stop in program.groups
        if tuple(line.op.kind for line in program.lines[start:stop]) == ("linear", "add")
        and bodies[start] == bodies[start + 1] == "cpp"
    }


def plan_arena(program: Program, bodies: tuple[str, ...], limits: StepLimits, quantised: Collection[int]) -> Arena:
    """First-fit over live intervals. rope and head_norm work in place; a fused sum overwrites its residual."""
    last_read = {value.id: -1 for value in program.values}
    for line in program:
        for value in line.inputs:
            last_read[value.id] = line.index
    if program.hidden is not None:
        last_read[program.hidden.id] = len(program.lines)  # somebody may want it after the step
    home: dict[int, int] = {}  # value -> the value whose buffer it uses
    skipped = set()
    fused = fused_adds(program, bodies)
    for linear, add in fused.items():
        skipped.add(program.lines[linear].output.id)
        residual = next(v for v in program.lines[add].inputs if v.id != program.lines[linear].output.id)
        if last_read[residual.id] == add:
            home[program.lines[add].output.id] = residual.id
    for line in program:
        if line.op.kind in ("rope", "head_norm") and last_read[line.inputs[0].id] == line.index:
            home[line.output.id] = line.inputs[0].id

    def root(value_id: int) -> int:
        while value_id in home:
            value_id = home[value_id]
        return value_id

    buffers: dict[tuple[str, int], list[int]] = {}  # (kind, root) -> [size, first line, last line]
    for line in program:
        value = line.output
        if line.op.kind == "experts" and bodies[line.index] == "cpp":
            routing = line.attributes["routing"]
            nbytes = experts_work_bytes(limits.tokens * routing.chosen, line.weights[0].rows // routing.experts)
            buffers["work", value.id] = [nbytes, line.index, line.index]
        if value.id in skipped:
            continue
        first = next((a for a, b in fused.items() if b == line.index), line.index)
        rows = limits.rows(value)
        sizes = {"f32": _align(rows * value.width * 4)}
        if value.id in quantised:
            sizes["quant"] = rows * quantised_row_bytes(value.width)
        for kind, size in sizes.items():
            span = buffers.setdefault((kind, root(value.id)), [size, first, first])
            span[0], span[2] = max(span[0], size), max(span[2], last_read[value.id], line.index)
    placed = _first_fit(buffers)
    offsets = {v.id: placed["f32", root(v.id)] for v in program.values if v.id not in skipped}
    quant_offsets = {v: placed["quant", root(v)] for v in quantised if v not in skipped}
    nbytes = max((placed[key] + span[0] for key, span in buffers.items()), default=0)
    work = {key[1]: offset for key, offset in placed.items() if key[0] == "work"}
    return Arena(offsets, quant_offsets, nbytes, work)


def _first_fit(buffers: Mapping[tuple[str, int], list[int]]) -> dict[tuple[str, int], int]:
    placed: dict[tuple[str, int], int] = {}
    for key, (size, first, last) in sorted(buffers.items(), key=lambda item: -item[1][0]):
        busy = sorted(
            (placed[other], placed[other] + buffers[other][0])
            for other in placed
            if not (buffers[other][2] < first or last < buffers[other][1])
        )
        offset = 0
        for begin, end in busy:
            if offset + size <= begin:
                break
            offset = max(offset, end)
        placed[key] = offset
    return placed


def _align(nbytes: int) -> int:
    return (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT

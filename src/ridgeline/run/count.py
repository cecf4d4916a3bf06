"""Counting: evaluate a Program's costs for a batch shape without running it (A4, A8). Off the hot path."""

from __future__ import annotations

from collections.abc import Iterator

from ridgeline.kit.cost import Cost
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.op import Line
from ridgeline.ops.program import Program


def count(program: Program, batch: BatchShape) -> list[tuple[Line, Cost]]:
    """Every line with its cost, in order."""
    return [(line, line.cost(batch)) for line in program]


def by_part(program: Program, batch: BatchShape) -> dict[str, Cost]:
    """Costs summed over layers by the last word of the line's name (qkv, attend, down, ...), in program order."""
    parts: dict[str, Cost] = {}
    for line, cost in count(program, batch):
        parts[line.part] = parts.get(line.part, Cost()) + cost
    return parts


def total(program: Program, batch: BatchShape) -> Cost:
    """The whole step."""
    result = Cost()
    for _, cost in count(program, batch):
        result = result + cost
    return result


def fused_bytes_saved(program: Program, batch: BatchShape) -> float:
    """Activation bytes that fused groups do not write and read again (D8)."""
    fused = sum(program.group_cost(group, batch).activation_bytes for group in program.groups)
    return float(total(program, batch).activation_bytes - fused)


def parameters(program: Program) -> int:
    """Elements of all distinct weights (A8)."""
    return sum(weight.rows * weight.columns for weight in program.weights)


def weight_bytes(program: Program) -> int:
    """Bytes of all distinct weights as stored."""
    return sum(weight.nbytes for weight in program.weights)


def alike(program: Program) -> Iterator[tuple[Line, list[int]]]:
    """One line of every sort, and the indices of all of that sort: layers repeat, and equal lines cost the same."""
    sorts: dict[object, list[Line]] = {}
    for line in program:
        weights = tuple((w.rows, w.columns, w.format.name, w.nbytes) for w in line.weights)
        widths = tuple(value.width for value in line.inputs)
        key = (line.part, line.output.rows, line.output.width, widths, weights, line.attributes.get("reach"))
        sorts.setdefault(key, []).append(line)
    for lines in sorts.values():
        yield lines[0], [line.index for line in lines]

"""Points: a study's records as series; of each cell the median over undisturbed repeats, or its fastest. Marks and
plots read these.
"""
# size: a method a question

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from .cells import BATCH, GRID, LENGTHS, Cell
from .fits import variation
from .measure import Header, Record

FFN, ATTENTION, CORE, NORMS, HEAD, OTHER = "FFN", "attention", "attention core", "norms and adds", "head", "other"
# Operator names to the classes the propositions speak of; the core of attention is a part of attention.
GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "gate_up": FFN, "activation": FFN, "down": FFN, "experts": FFN, "router": FFN, "route": FFN, "dispatch": FFN,
        "combine": FFN, "shared_gate": FFN,
        "qkv": ATTENTION, "head_norm": ATTENTION, "rope": ATTENTION, "attend": ATTENTION, "o": ATTENTION,
        "attend_norm": NORMS, "mlp_norm": NORMS, "final_norm": NORMS, "attend_add": NORMS, "mlp_add": NORMS,
        "head": HEAD, "sample": HEAD, "gather": HEAD,
    }
)  # fmt: skip
ROUTING = ("router", "route", "dispatch", "combine")

Series = list[tuple[float, float]]


def prefill_share(record: Record) -> float:
    """Of prefill and decode together."""
    whole = record.seconds("prefill") + record.seconds("decode")
    return record.seconds("prefill") / whole if whole > 0 else 0.0


class Points:
    """Questions to a study's records."""

    def __init__(self, header: Header, records: Iterable[Record]) -> None:
        self.header = header
        self.records = list(records)
        self._by_cell: dict[Cell, list[Record]] = {}
        for record in self.records:
            self._by_cell.setdefault(record.cell, []).append(record)

    def cells(self, group: str, **fields: object) -> list[Cell]:
        """Of a group, with these fields, by batch, output and input."""
        found = [
            cell
            for cell in self._by_cell
            if cell.group == group and all(getattr(cell, name) == value for name, value in fields.items())
        ]
        return sorted(found, key=lambda cell: (cell.batch, cell.output, cell.input, cell.vectors, cell.variant))

    def of(self, cell: Cell) -> list[Record]:
        """Undisturbed records of a cell; the fastest one where fewer than two were: others' work only ever slows."""
        calm = [record for record in self._by_cell[cell] if not record.is_disturbed]
        return calm if len(calm) >= 2 else [min(self._by_cell[cell], key=lambda record: record.wall_s)]

    def all_of(self, cell: Cell) -> list[Record]:
        """Disturbed ones too."""
        return self._by_cell[cell]

    def median(self, cell: Cell, what: Callable[[Record], float]) -> float:
        return statistics.median(what(record) for record in self.of(cell))

    def seconds(self, cell: Cell, what: Callable[[Record], float]) -> float:
        """A time: the median over undisturbed repeats; the shortest where fewer than two were (noise only adds)."""
        records = self.of(cell)
        return self.median(cell, what) if len(records) > 1 else min(what(record) for record in self.all_of(cell))

    def disturbed(self) -> int:
        return sum(record.is_disturbed for record in self.records)

    # -- series

    def prefill_share(self, output: int) -> Series:
        """(input, prefill's share of prefill + decode) at batch 1."""
        return [
            (cell.input, self.median(cell, prefill_share)) for cell in self.cells(GRID, output=output, batch=1)
        ]  # fmt: skip

    def outputs(self) -> list[int]:
        return sorted({cell.output for cell in self.cells(GRID, batch=1)})

    def prefill(self, longest: int = 1 << 30, cached: bool | None = None) -> Series:
        """(uncached tokens, seconds of prefill) up to `longest`; cached: only with, or only without a prefix hit."""
        return sorted(
            (cell.input - cell.cached, self.seconds(cell, lambda r: r.seconds("prefill")))
            for cell in self.cells(LENGTHS)
            if cell.input - cell.cached <= longest and cached in (None, cell.cached > 0)
        )

    def group_s(self, cell: Cell, phase: str, group: str) -> float:
        """Seconds of an operator class in a phase; of decode, a step."""

        def spent(record: Record) -> float:
            found = record.phases.get(phase)
            if found is None:
                return 0.0
            if group == CORE:
                whole = found.parts_s.get("attend", 0.0)
            else:
                whole = sum(s for part, s in found.parts_s.items() if GROUPS.get(part, OTHER) == group)
            return whole / found.steps if phase == "decode" and found.steps else whole

        return self.seconds(cell, spent)

    def shares(self, cell: Cell, phase: str) -> dict[str, float]:
        """Of the operators' time in a phase, by class; the core apart from the rest of attention."""
        seconds = {group: self.group_s(cell, phase, group) for group in (FFN, ATTENTION, CORE, NORMS, HEAD, OTHER)}
        seconds[ATTENTION] -= seconds[CORE]
        whole = sum(seconds.values())
        return {group: s / whole for group, s in seconds.items()} if whole > 0 else {}

    def by_length(self, phase: str, group: str) -> Series:
        """(input, seconds of a class) over the lengths that hit no prefix."""
        return [(cell.input, self.group_s(cell, phase, group)) for cell in self.cells(LENGTHS, cached=0)]

    def throughput(self) -> Series:
        """(batch, decoded tokens a second)."""
        return [(cell.batch, cell.batch / self.seconds(cell, Record.step_s)) for cell in self.batches()]

    def latency(self) -> Series:
        """(batch, seconds of a decode step)."""
        return [(cell.batch, self.seconds(cell, Record.step_s)) for cell in self.batches()]

    def batches(self) -> list[Cell]:
        return [cell for cell in self.cells(BATCH) if self.seconds(cell, Record.step_s) > 0]


def fixed_variation(points: Points) -> tuple[float, int]:
    """How much the decode time of one length varies over its repeats: (median over cells, measurements in it)."""
    repeated = [records for cell in points.cells(GRID, batch=1) if len(records := points.all_of(cell)) > 1]
    spreads = [variation([record.seconds("decode") for record in records]) for records in repeated]
    return statistics.median(spreads) if spreads else 0.0, sum(map(len, repeated))

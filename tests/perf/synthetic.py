"""A made study whose every series follows a known law: marks and pages can be checked against it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ridgeline.perf.study import cells as c
from ridgeline.perf.study.cells import Cell
from ridgeline.perf.study.measure import Header, Phase, Record
from ridgeline.state.messages import EngineFacts

from .conftest import round_machine

FIXED_S, TOKEN_S, BEND_S = 0.002, 1e-4, 1e-9  # prefill: fixed, by uncached token, by its square
STEP_S, ROW_S, KEPT_S = 0.004, 0.0005, 2e-6  # a decode step: weights, by sequence, by kept token


def header(**changes) -> Header:
    facts = EngineFacts(model="made", name="made", family="llama", is_random=False, vocabulary=500, context=8192,
                        context_model=8192, threads=2, max_sequences=64)  # fmt: skip
    machine = round_machine()
    counted = {"prefill": {"FFN": 90.0, "attention core": 50.0}, "decode": {"FFN": 1.0, "attention core": 3.0}}
    fields = (1, "made", {}, facts, machine.fingerprint, machine, "2026-11-21", (0.3, 0.1, 0.1), 1, counted)
    return Header(*fields, **changes)


def record(cell: Cell, repeat: int = 0, foreign: float = 0.0, source: str = "estimate", **changes) -> Record:
    fresh, steps = cell.input - cell.cached, cell.output - 1
    prefill_s = FIXED_S + TOKEN_S * fresh + BEND_S * fresh**2
    core_s, step_s = KEPT_S * cell.input * cell.batch, STEP_S + ROW_S * cell.batch
    decode_s = steps * (step_s + core_s)
    phases = {
        "prefill": Phase(prefill_s, 1, fresh, 200.0, 1e8, 1e5, "compute", 0.6, 0.01 * fresh,
                         {"gate_up": 5e-5 * fresh, "attend": 2.5e-8 * fresh**2}),
        "decode": Phase(decode_s, steps, steps * cell.batch, 1.0, 1e6, 6e5, "weight bandwidth", 0.7, 0.5 * steps,
                        {"gate_up": steps * step_s * 0.7, "head": steps * step_s * 0.2, "attend": steps * core_s}),
    }  # fmt: skip
    net_j = sum(phase.joules for phase in phases.values())
    answers = (cell.output,) * cell.batch
    plain = Record(cell, repeat, "now", prefill_s + decode_s, phases, 0.001, prefill_s, decode_s, answers, cell.cached,
                   net_j, 2 * net_j, (0.5, 2.0), source, foreign, prefill_s)  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def full(make: Callable[..., Record] = record) -> list[Record]:
    """Every part of a study."""
    found = [make(cell, repeat) for cell in c.main_cells(8192, 64, False) for repeat in range(2)]
    found += [make(Cell(c.VARIETY, 40, 10 + 9 * index, natural=True, variant=str(index))) for index in range(10)]
    found += [make(Cell(c.SIZES, 128, 16, variant=f"shape{n}:{n}000000")) for n in (1, 2, 4)]
    found += [make(Cell(c.THREADS, 256, 16, variant=str(n))) for n in (1, 2)]
    for variant, step_s in (("mixture", 0.011), ("active", 0.01), ("whole", 0.1)):
        one = make(Cell(c.MOE, 32, 32, variant=variant))
        phase = Phase(
            31 * step_s, 31, 31, 1.0, 1e6, 6e5, "weight bandwidth", 0.7, 1.0, {"router": 0.01, "experts": 0.09}
        )
        found.append(record(one.cell, phases=one.phases | {"decode": phase}))
    found += [
        record(
            Cell(c.RAG, 320, 32, vectors=n, variant=kind), wall_s=0.1, extra_s={"search": n * each_s, "embed": 0.005}
        )
        for kind, each_s in (("flat", 1e-6), ("lists", 1e-8))
        for n in c.VECTORS
    ]
    return found

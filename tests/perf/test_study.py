"""The study: fits with known answers, cells that fit the time, a book that resumes, marks earned by their rules."""

from __future__ import annotations

import math

import msgspec
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.perf.study import cells as c
from ridgeline.perf.study.cells import Cell, fitting, interleaved, main_cells
from ridgeline.perf.study.findings import CLAIMS, NO, UNTESTABLE, YES, findings
from ridgeline.perf.study.fits import crossing, curve, curved_from, is_rising, line, plane, variation
from ridgeline.perf.study.measure import Book, _prompts
from ridgeline.perf.study.points import CORE, FFN, Points

from . import synthetic
from .synthetic import BEND_S, FIXED_S, TOKEN_S, full, header, record


def marks(records) -> dict[str, str]:
    return {each.id: each.mark for each in findings(Points(header(), records))}


def test_a_line_and_a_curve_are_found_again():
    points = [(float(x), 3 + 2 * x) for x in range(5)]
    fit = line(points)
    assert (fit.a, fit.b, fit.c, fit.r2, fit.n) == (pytest.approx(3), pytest.approx(2), 0.0, pytest.approx(1), 5)
    bent = curve([(x, y + 0.5 * x * x) for x, y in points])
    assert (bent.a, bent.b, bent.c) == (pytest.approx(3), pytest.approx(2), pytest.approx(0.5))
    assert line(points[:2]) is None and curve(points[:3]) is None


def test_the_quadratic_term_is_a_tenth_where_it_says():
    fit = curve([(x, 100 + 10 * x + 0.01 * x * x) for x in range(0, 1000, 100)])
    at = curved_from(fit)
    assert fit.c * at * at == pytest.approx(0.1 * fit.at(at))
    assert curved_from(line([(x, 2.0 * x) for x in range(4)])) is None


def test_a_crossing_is_interpolated_in_the_logarithm():
    assert crossing([(16, 0.25), (64, 0.75), (256, 0.9)], 0.5) == pytest.approx(32)
    assert crossing([(16, 0.6), (64, 0.7)], 0.5) == 16
    assert crossing([(16, 0.1), (64, 0.2)], 0.5) is None


def test_planes_variations_and_rises():
    terms, r2 = plane(
        [(a, b) for a in range(3) for b in range(3)], [1 + 2 * a + 3 * b for a in range(3) for b in range(3)]
    )
    assert terms == [pytest.approx(1), pytest.approx(2), pytest.approx(3)] and r2 == pytest.approx(1)
    assert plane([(1, 2)], [3]) is None
    assert variation([1, 1, 1]) == 0 and variation([1.0, 3.0]) == pytest.approx(math.sqrt(2) / 2)
    assert is_rising([1.0, 0.99, 2.0]) and not is_rising([1.0, 0.9])


def test_cells_keep_to_the_engine_and_each_has_a_key_of_its_own():
    cells = main_cells(300, 8, True)
    assert all(cell.input + cell.output <= 300 and cell.batch <= 8 for cell in cells)
    assert {cell.group for cell in cells} == {c.GRID, c.LENGTHS, c.BATCH, c.VARIETY}
    cells = main_cells(8192, 64, True)
    assert len({cell.key for cell in cells}) == len(cells)


def test_what_does_not_fit_gives_up_repeats_then_the_most_costly_cells_but_no_group():
    cells = main_cells(8192, 64, False)
    costs = {cell.key: 0.001 * cell.input for cell in cells}
    whole_s = sum(costs[cell.key] + c.OVERHEAD_S for cell in cells)
    assert fitting(cells, costs, 5 * whole_s + 1, 5) == (cells, 5)
    assert fitting(cells, costs, 3 * whole_s + 1e-6, 5) == (cells, 3)
    chosen, repeats = fitting(cells, costs, whole_s, 5)
    assert repeats == 2 and len(chosen) < len(cells)
    assert max(cell.input for cell in chosen) < max(cell.input for cell in cells)
    assert {cell.group for cell in fitting(cells, costs, 0.0, 5)[0]} == {cell.group for cell in cells}


def test_repeats_are_interleaved_forwards_and_backwards():
    a, b = Cell("x", 1, 1), Cell("x", 2, 1)
    assert interleaved([a, b], 3) == [(a, 0), (b, 0), (b, 1), (a, 1), (a, 2), (b, 2)]


def test_prompts_share_what_is_cached_and_nothing_else():
    first, second = _prompts(Cell(c.LENGTHS, 96, 8, batch=2, cached=64), 0, 500)
    assert first[:64] == second[:64] and first[64:] != second[64:] and len(first) == 96
    assert _prompts(Cell(c.GRID, 32, 8), 0, 500) != _prompts(Cell(c.GRID, 32, 8), 1, 500)


def test_a_book_goes_on_where_it_was_broken_off(tmp_path):
    path, cell = tmp_path / "cells.jsonl", Cell(c.GRID, 16, 16)
    book = Book(path)
    book.begin(header())
    book.add(record(cell, 0))
    path.write_bytes(path.read_bytes() + b'{"cell":{"group":"gr')  # torn: the machine went away
    again = Book(path)
    again.begin(header())
    assert again.has(cell, 0) and not again.has(cell, 1)
    again.add(record(cell, 1))
    assert [r.repeat for r in Book(path).records] == [0, 1]
    with pytest.raises(UserError, match="another model"):
        Book(path).begin(msgspec.structs.replace(header(), model="other"))
    path.write_text("nonsense\n")
    with pytest.raises(UserError, match="no study's file"):
        Book(path)


def test_every_proposition_is_marked_once_and_in_order():
    for records in ([], full()):
        found = findings(Points(header(), records))
        assert [each.id for each in found] == list(CLAIMS) == [f"F{n}" for n in range(1, 17)]
        assert all(each.mark in (YES, NO, UNTESTABLE) and each.figure for each in found)
    assert set(marks([]).values()) == {UNTESTABLE}


def test_a_study_that_follows_the_laws_reproduces_them():
    found = marks(full())
    assert {name for name, mark in found.items() if mark == YES} == {"F1", "F2", "F4", "F5", "F6", "F7", "F15", "F16"}
    assert found["F3"] == NO  # norms are not in it, the head takes more than a tenth
    assert all(found[name] == UNTESTABLE for name in ("F8", "F9", "F10", "F11", "F12", "F13", "F14"))


def test_a_study_that_breaks_a_law_does_not_reproduce_it():
    def flat(cell, repeat=0):  # nothing costs anything more
        return msgspec.structs.replace(record(Cell(cell.group, 64, 16), repeat), cell=cell)

    found = marks(full(flat))
    assert all(found[name] == NO for name in ("F2", "F4", "F5", "F6"))


def test_a_meter_makes_energy_testable_and_an_estimate_never_does():
    assert marks(full())["F8"] == UNTESTABLE
    assert marks(full(lambda cell, repeat=0: record(cell, repeat, source="meter(rapl)")))["F8"] == YES


def test_disturbed_records_are_left_out_where_two_calm_ones_are_and_else_the_fastest_stands():
    cell = Cell(c.LENGTHS, 64, 8)
    slow = msgspec.structs.replace(record(cell, 0, foreign=0.5), wall_s=99.0)
    points = Points(header(), [slow, record(cell, 1), record(cell, 2)])
    assert points.median(cell, lambda r: r.wall_s) < 1 and points.disturbed() == 1
    assert Points(header(), [slow, record(cell, 1)]).of(cell) == [record(cell, 1)]


def test_series_are_what_was_measured():
    points = Points(header(), full())
    assert points.prefill(64) == [(64, pytest.approx(FIXED_S + TOKEN_S * 64 + BEND_S * 64**2))] * 3
    assert [batch for batch, _ in points.throughput()] == list(c.BATCHES)
    cell = Cell(c.LENGTHS, 512, c.TAIL)
    assert points.group_s(cell, "decode", CORE) == pytest.approx(synthetic.KEPT_S * 512)
    shares = points.shares(cell, "decode")
    assert sum(shares.values()) == pytest.approx(1) and shares[FFN] > shares[CORE]

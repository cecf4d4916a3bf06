"""Rooflines: the table, the picture (nothing covers a name), the page, and files that cannot be written."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ridgeline.kit.errors import UserError
from ridgeline.perf.roofline import COMPUTE, WEIGHT_BANDWIDTH, Ceiling, OperatorPoint
from ridgeline.report.roofline_page import check_file, page, write
from ridgeline.report.roofline_plot import BOTTOM, LEFT, LETTER, LINE, RIGHT, TOP, Axes, svg
from ridgeline.report.roofline_view import COLUMNS, Roofline, rows, sentence

CEILINGS = (
    Ceiling("memory read", 20e9, True, True), Ceiling("f32 arithmetic", 300e9, False, True),
    Ceiling("int8 arithmetic", 1.2e12, False, True), Ceiling("L2 read", 140e9, True, False),
)  # fmt: skip


def point(name: str, phase: str, seconds: float, intensity: float, share: float) -> OperatorPoint:
    ceiling = min(1.2e12, 20e9 * intensity)
    rate = share * ceiling
    roof = COMPUTE if ceiling == 1.2e12 else WEIGHT_BANDWIDTH
    return OperatorPoint(
        phase, name, "int8", seconds, rate * seconds, rate * seconds / intensity, rate, intensity, ceiling, roof,
        share, seconds * (1 - share),
    )  # fmt: skip


def drawn(names: int = 6) -> Roofline:
    """Many operators of one intensity in each phase, which is how a model looks, and one that is not drawn."""
    points = [point(f"decode_{at}", "decode", 0.4 / (at + 1), 3.2, 0.8 - 0.02 * at) for at in range(names)]
    points += [point(f"prompt_{at}", "prefill", 0.3 / (at + 1), 410.0, 0.5 - 0.01 * at) for at in range(names)]
    points.append(OperatorPoint("decode", "rope", "f32", 0.01, 1e6, 0.0, 1e8))
    return Roofline("A <title>", "a machine", "a footer " * 30, tuple(points), CEILINGS)


def names_of(text: str) -> dict[str, tuple[float, float, float, float]]:
    """Boxes of the operators' names."""
    found = {}
    for at, y, content in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" class="small" text-anchor="middle">([^<]+)<', text
    ):
        half = LETTER * len(content) / 2
        middle = float(y) - 4
        found[content] = (float(at) - half, middle - LINE / 2, float(at) + half, middle + LINE / 2)
    return found


def test_every_operator_has_a_row_and_those_in_caches_have_no_ceiling():
    table = rows(drawn())
    assert all(len(row) == len(COLUMNS) for row in table) and len(table) == 13
    first, last = table[0], table[-1]
    assert first[:2] == ("decode_0", "decode") and first[7] == "80 %" and first[9] == WEIGHT_BANDWIDTH
    assert last[0] == "rope" and last[9] == "caches" and set(last[4:5] + last[6:9]) == {"–"}
    assert "memory read 20.0 GB/s" in sentence(drawn()) and "L2" not in sentence(drawn())


def test_names_stand_inside_and_none_covers_another():
    picture = svg(drawn())
    ElementTree.fromstring(picture)
    boxes = names_of(picture)
    assert len(boxes) == 12
    for name, box in boxes.items():
        assert box[0] > LEFT and box[2] < RIGHT and box[1] > TOP and box[3] < BOTTOM, name
        for other, its in boxes.items():
            apart = box[2] <= its[0] or its[2] <= box[0] or box[3] <= its[1] or its[3] <= box[1]
            assert name == other or apart, (name, other)


def test_marks_lie_below_the_roof_by_their_share():
    roofline = drawn(1)
    axes = Axes.around(roofline.drawn, roofline.ceilings)
    first = roofline.drawn[0]
    mark, roof = axes.py(first.achieved_flops_per_s), axes.py(first.ceiling_flops_per_s)
    assert roof < mark and LEFT < axes.px(first.intensity) < RIGHT
    assert axes.px(60.0) == pytest.approx((axes.px(6.0) + axes.px(600.0)) / 2)  # decades are equally long


def test_nothing_timed_is_a_picture_that_says_so():
    empty = Roofline("t", "s", "f", (), CEILINGS)
    assert "nothing to draw" in svg(empty)
    assert rows(empty) == [] and "operators took 0 s" in sentence(empty)


def test_the_page_needs_no_network_and_tells_what_a_mark_is():
    text = page(drawn())
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.count("data-tell=") == 12 and "A &lt;title&gt;" in text and "<title> " not in text
    assert text.count("<tr data-phase=") == 13
    assert "decode_0, decode (int8)" in text


def test_files_that_cannot_be_written_are_refused_before_the_run(tmp_path, monkeypatch):
    write(drawn(), tmp_path / "r.svg")
    write(drawn(), tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(UserError, match=r"\.html, \.svg, \.png"):
        check_file(tmp_path / "r.pdf")
    with pytest.raises(UserError, match="no folder"):
        check_file(tmp_path / "deep" / "r.svg")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="matplotlib"):
        check_file(Path(tmp_path / "r.png"))

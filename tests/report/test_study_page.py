"""The study's page: one file, every proposition once, nothing from a network, estimates called so."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from ridgeline.perf.study.findings import findings
from ridgeline.perf.study.points import Points
from ridgeline.report.charts import Axis, Line, line_chart, share_bars
from ridgeline.report.study_page import study_page

from ..perf.synthetic import full, header

VOID = {"meta", "br", "line", "rect", "circle", "polyline"}


class Checked(HTMLParser):
    """Every tag closed in its order; what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "data", "action"):
                self.loads.append(value)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(page: str) -> Checked:
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def page_of(records) -> str:
    points = Points(header(), records)
    return study_page(points, findings(points))


@pytest.mark.parametrize("records", [[], full()], ids=["nothing measured", "a whole study"])
def test_the_page_is_whole_holds_each_proposition_once_and_loads_nothing(records):
    page = page_of(records)
    parser = checked(page)
    assert parser.ids == [f"F{n}" for n in range(1, 17)]
    assert not parser.loads
    assert not re.search(r"https?://|@import|url\(|<script|<link|<img", page)
    assert 'name="viewport"' in page


def test_every_section_of_a_whole_study_is_drawn():
    page = page_of(full())
    assert page.count("<svg") == 12
    for word in ("Two phases", "Many at a time", "Energy", "Retrieval", "mixture", "How it was measured", "Every cell"):
        assert word in page


def test_joules_without_a_meter_are_called_estimated_with_a_band():
    page = page_of(full())
    assert "No meter here:" in page and "0.5 to 2 times" in page
    text = re.sub(r"<[^>]+>", " ", page)
    for found in re.finditer(r"an answer token", text):
        around = text[found.start() - 80 : found.end() + 60]
        assert "J" not in around or "estimated" in around or "ms" in around or "tokens/s" in around


def test_charts_of_nothing_are_nothing_and_points_carry_their_numbers():
    assert line_chart("x", Axis("a"), Axis("b"), [Line("one", [(1, 2)])]) == ""
    assert share_bars("x", [], ("a",)) == ""
    chart = line_chart(
        "x", Axis("tokens", is_log=True), Axis("ms"), [Line("a<b", [(1, 2), (10, 3), (100, 5)])], level=4
    )
    assert "<title>a&lt;b: 10 tokens, 3.00 ms</title>" in chart and chart.count("<circle") == 3
    bars = share_bars("x", [("16", {"a": 0.25, "b": 0.75})], ("a", "b"))
    assert "16, b: 75.0%" in bars and bars.count("<rect") == 2

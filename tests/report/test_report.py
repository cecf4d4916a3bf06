"""Numbers, tables, documents, lines and pictures as people and programs read them."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from ridgeline import __version__
from ridgeline.perf.account import Account
from ridgeline.perf.energy import EnergySummary
from ridgeline.perf.roofline import COMPUTE, HOST, WEIGHT_BANDWIDTH
from ridgeline.perf.summary import AccountSummary, PhaseSummary
from ridgeline.report.account_lines import account_lines, energy_line
from ridgeline.report.choice_lines import choice_lines
from ridgeline.report.document import document, print_document
from ridgeline.report.plots import Panel, bars
from ridgeline.report.tables import plain, show
from ridgeline.report.units import digits, nbytes, percent, scaled, seconds
from ridgeline.run.machine import fingerprint


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.1234, "0.123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (-3.14159, "-3.14"),
    ],
)
def test_three_digits(value, text):
    assert digits(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (98362432, "98.4 MB"), (1e9, "1.00 GB"), (6.9e10, "69.0 GB"), (3.2e20, "320 EB")],
)
def test_bytes(value, text):
    assert nbytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 s"), (8e-7, "0.800 µs"), (0.0123, "12.3 ms"), (1.534, "1.53 s"), (125, "2 min 5 s")]
)
def test_seconds(value, text):
    assert seconds(value) == text


def test_shares_and_rates():
    assert (percent(0.624), percent(0.031), percent(1.0)) == ("62 %", "3.1 %", "100 %")
    assert scaled(2.31e12, "FLOP/s") == "2.31 TFLOP/s"


def test_a_table_in_a_pipe_is_aligned_and_never_cut():
    out = io.StringIO()
    show(Console(file=out, width=20), ("name", "size"), [("a" * 60, "9.5 MB"), ("b", "100 MB")], "Title")
    lines = out.getvalue().splitlines()
    assert lines[0] == "Title" and lines[2].startswith("a" * 60)
    assert lines[2].endswith("9.5 MB") and lines[3].endswith("100 MB") and len(lines[2]) == len(lines[3])
    assert plain(("x",), [], [True]) == "x"


def test_a_table_on_a_terminal_has_everything():
    out = io.StringIO()
    show(Console(file=out, width=60, force_terminal=True, color_system=None), ("name", "n"), [("attend", "3")])
    assert "attend" in out.getvalue() and "name" in out.getvalue()


def test_a_document_is_one_line_with_a_schema_and_a_machine():
    out = io.StringIO()
    print_document(document("bench", fingerprint(), {"text": "a\nb", "value": 1.5}), out)
    assert out.getvalue().count("\n") == 1
    read = json.loads(out.getvalue())
    assert (read["schema"], read["version"], read["value"]) == ("ridgeline.bench/1", __version__, 1.5)
    assert read["machine"]["cores"] >= 1


def phase(name: str, seconds_: float, roof: str, share: float) -> PhaseSummary:
    return PhaseSummary(
        name, 3, 30, seconds_, 30 / seconds_, 6e9, 1e9, 1e8, 0, 5.45, 6e9 / seconds_, 1.1e9 / seconds_, roof,
        share * seconds_, share, 16.0, seconds_, 1.0,
    )  # fmt: skip


def summary(*phases: PhaseSummary, bound: str = WEIGHT_BANDWIDTH) -> AccountSummary:
    return AccountSummary(
        phases, (), 6, 0, 1.0, 0.9, 0.1, 0.0, 0.0, 0.8, 0.1, 0.9, 1.0, 6, bound, 2e10, {"f32": 1e11}, {}, 0, 0
    )  # fmt: skip


def test_three_lines_in_words():
    lines = account_lines(summary(phase("prefill", 0.1, COMPUTE, 0.3), phase("decode", 0.5, WEIGHT_BANDWIDTH, 0.8)))
    assert len(lines) == 3 and all("\n" not in line for line in lines)
    assert "prefill (prompt): 30 tokens in 100 ms, 300 tokens/s" in lines[0] and "decode (answer)" in lines[0]
    assert "prefill 5.45, decode 5.45" in lines[1] and "ridge is 16.0" in lines[1]
    assert lines[2].index("decode at 80 %") < lines[2].index("prefill at 30 %")  # the longer one first
    assert "bounded by reading the weights" in lines[2] and "2.20 GB/s of 20.0 GB/s" in lines[2]
    assert "nearest roof is arithmetic" in lines[2]  # far below a roof, it is not the roof that bounds


def test_random_weights_and_a_slow_host_are_said():
    lines = account_lines(summary(phase("decode", 0.5, WEIGHT_BANDWIDTH, 0.8), bound=HOST), is_random=True)
    assert "random weights" in lines[0]
    assert lines[2].startswith("Roof       bounded by the program around the model")


def test_switches_are_told_with_reason_and_outcome():
    seen = {"gaps": 4, "gaps_late": 1, "mean_gap_s": 0.01, "longest_gap_s": 0.03, "firsts": 1, "firsts_late": 0}
    log = [
        {"before": "chunked", "after": after, "why": f"because {after}", "outcome": f"{after} did", "seen": seen}
        for after in ("serial", "split", "corun", "chunked")
    ]
    told = {
        "now": "chunked", "ways": ["chunked"], "gap_goal_s": 0.05, "first_goal_s": 1.5, "switches": 7, "log": log,
        "measured_over_estimated": 1.25,
    }  # fmt: skip
    first, *lines = choice_lines(told)
    assert "chunked now, 7 switches" in first and "50.0 ms" in first and "1.25 times their estimate" in first
    assert [line.strip() for line in lines] == [
        f"chunked -> {after}: because {after}; {after} did" for after in ("split", "corun", "chunked")
    ]
    assert choice_lines({}) == []


def test_nothing_ran():
    assert len(account_lines(summary())) == 3
    assert Account().table().shapes == b""


LABELS = [("naive", "no cache"), ("a & <b>", "escaped")]


def svg(*panels: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(bars("Title <&>", "what", LABELS, panels, "footer"))


def rects(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [
        r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") == kind and r.get("height") == "13"
    ]


def test_bars_are_as_long_as_their_numbers():
    root = svg(Panel("Throughput", "tokens/s", [10.0, 40.0], [None, 20.0]))
    measured, predicted = rects(root, "measured"), rects(root, "predicted")
    assert float(measured[1].get("width")) == pytest.approx(4 * float(measured[0].get("width")), rel=1e-2)
    assert float(predicted[0].get("width")) == pytest.approx(2 * float(measured[0].get("width")), rel=1e-2)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"10.0", "40.0", "20.0", "Throughput (tokens/s)", "a & <b>", "Title <&>", "footer"} <= set(texts)


def test_bars_stay_inside_the_picture_and_nothing_is_no_bar():
    root = svg(Panel("A", "s", [1.0, 2.0], [3.0, None]), Panel("B", "s", [0.0, None]))
    width = float(root.get("viewBox").split()[2])
    assert all(
        float(r.get("x")) + float(r.get("width")) < width for r in rects(root, "measured") + rects(root, "predicted")
    )
    assert len(rects(root, "measured")) == 3
    assert "prefers-color-scheme: dark" in "".join(root.itertext())


def test_no_prediction_no_legend_for_it():
    assert "predicted before the run" not in "".join(svg(Panel("A", "s", [1.0, 2.0])).itertext())


def an_energy(**changes):
    fields = {
        "source": "estimate", "is_estimated": True, "band": (0.5, 2.0), "scope": "package", "model": "a core",
        "wall_s": 2.0, "gross_j": 10.0, "idle_j": 6.0, "net_j": 4.0, "idle_source": "estimate",
        "by_phase_j": {"prefill": 1.0, "decode": 3.0}, "by_part_j": {}, "mean_w": 5.0, "output_tokens": 100,
        "j_per_token": 0.04, "gross_j_per_token": 0.1, "j_per_prompt_token": 0.01, "j_per_request": 4.0,
        "tokens_per_j": 25.0, "edp_js": 8.0,
    }  # fmt: skip
    return EnergySummary(**fields | changes)


def test_energy_without_a_meter_is_called_estimated_and_each_figure_has_its_band():
    line = energy_line(an_energy())
    assert "estimated (no meter here)" in line
    figures = ("4.00 J [2.00 J–8.00 J]", "40.0 mJ [20.0 mJ–80.0 mJ]", "25.0 [12.5–50.0] tokens/J", "5.00 [2.50–10.0] W")
    assert all(figure in line for figure in figures)
    assert "prefill 25 %, decode 75 %" in line
    assert "stood still" in energy_line(an_energy(void="the meter stood still for 3 s"))


def test_energy_from_a_meter_names_it_and_says_when_idle_was_not_measured():
    line = energy_line(an_energy(source="meter(rapl)", is_estimated=False, band=(1.0, 1.0)))
    assert "meter(rapl): 4.00 J above idle" in line and "[" not in line and "idle part estimated" in line
    assert "estimated" not in energy_line(
        an_energy(source="meter(rapl)", is_estimated=False, band=(1.0, 1.0), idle_source="measured")
    )
    assert energy_line(None) == ""

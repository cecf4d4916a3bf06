"""What --roofline does at the end of `bench` and `run`: the table on the screen, the picture in a file."""

from __future__ import annotations

from pathlib import Path

from ridgeline.llm import LLM
from ridgeline.perf.roofline import ceilings
from ridgeline.perf.summary import AccountSummary
from ridgeline.report.roofline_page import write
from ridgeline.report.roofline_view import COLUMNS, Roofline, rows, sentence
from ridgeline.report.units import nbytes, percent, scaled
from ridgeline.run.machine import load_or_measure

from .screen import Screen


def show_roofline(
    screen: Screen, llm: LLM, account: AccountSummary, what: str, path: Path, foreign: float | None = None
) -> None:
    """what: model and workload, as the title says it. UserError for a file that cannot be written."""
    machine = load_or_measure(llm.facts.threads)
    kinds = {point.kind for point in account.points if point.intensity is not None} or {"f32"}
    busy = "" if foreign is None else f" \N{MIDDLE DOT} others had {percent(foreign)} of the processors meanwhile"
    planes = " \N{MIDDLE DOT} 15-bit activations take two int8 dots a product" if _has_planes(llm, kinds) else ""
    roofline = Roofline(
        f"Roofline: {what}",
        f"{machine.fingerprint.cpu}, {machine.threads} threads \N{MIDDLE DOT} {nbytes(account.set_bytes)} of weights "
        f"\N{MIDDLE DOT} marks: time; dashed: to the ceiling"
        + (" \N{MIDDLE DOT} random weights" if llm.facts.is_random else ""),
        f"ceilings measured here {machine.measured_at[:16]}: read {scaled(account.bandwidth_bytes_per_s, 'B/s')}{busy}"
        f"{planes}",
        account.points, ceilings(machine, account.set_bytes, kinds),
    )  # fmt: skip
    if roofline.points:
        screen.say()
        screen.table(COLUMNS, rows(roofline), roofline.title)
        screen.say(sentence(roofline))
    write(roofline, path)
    screen.say(f"drawn into {path}")


def _has_planes(llm: LLM, kinds: set[str]) -> bool:
    return "int8" in kinds and llm.config.activations != "int8"

"""What `ridgeline bench --study` does: opens engines, keeps the book, tells how far it is, writes the page."""
# size: study takes what a person asked for

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.perf.study.findings import Finding, findings
from ridgeline.perf.study.measure import Book, Ids, Subject
from ridgeline.perf.study.points import Points
from ridgeline.perf.study.run import SHARES, Asked, Study, questions
from ridgeline.report.study_page import study_page
from ridgeline.run.machine import load_or_measure, raise_ceilings, usable_cores

from .screen import Screen

CELLS, PAGE = "cells.jsonl", "report.html"


def study(
    model: str, options: dict[str, Any], *, minutes: float, out: Path | None, json: bool, repeats: int = 5,
    parts: tuple[str, ...] = tuple(SHARES),
) -> None:  # fmt: skip
    """Run a study, or go on with the one in its folder, and write its page; also after Ctrl-C, with what there is.

    UserError for what cannot be studied or written.
    """
    screen = Screen(json)
    if unknown := [part for part in parts if part not in SHARES]:
        raise UserError(f"--parts has {', '.join(unknown)!r}; a study has the parts {', '.join(SHARES)}.")
    if not 0 < minutes <= 24 * 60:
        raise UserError(f"--minutes is {minutes:g}; give a time above 0 and up to a day (1440).")
    folder = _folder(model, out)
    book = Book(folder / CELLS)
    if book.records:
        screen.aside(f"going on with {folder / CELLS}: {len(book.records)} measurements are there", style="dim")
    with screen.fetching(model) as fetched:
        llm = LLM(model, progress=fetched, **options)  # pulls what is known; also says what cannot be opened
    try:
        screen.notes(model, llm.notes)
        texts = _texts(llm)
        threads = llm.facts.threads or usable_cores()
        ceilings = book.header.ceilings if book.header else raise_ceilings(load_or_measure(threads))
    except BaseException:
        llm.close()
        raise
    first: list[LLM] = [llm]

    @contextmanager
    def open_engine(name: str, given: dict[str, Any]) -> Iterator[Subject]:
        engine = first.pop() if first and name == model and given == options else LLM(name, **given)
        try:
            yield engine
        finally:
            engine.close()

    asked = Asked(model, options, minutes, texts, parts, repeats)
    with _telling(screen, f"study of {model}") as tell:
        try:
            Study(asked, book, open_engine, tell).run(ceilings, lambda subject: llm.program, folder)
        except KeyboardInterrupt:
            screen.aside("stopped; the same command goes on from here", style="bold")
    _finish(screen, book, folder)


def _finish(screen: Screen, book: Book, folder: Path) -> None:
    if book.header is None or not book.records:
        raise UserError("no cell was measured in the time there was; give more --minutes.")
    points = Points(book.header, book.records)
    found = findings(points)
    page = folder / PAGE
    page.write_text(study_page(points, found), "utf-8")
    screen.table(("", "", "proposition", "what decides"), [_row(each) for each in found], "Propositions")
    screen.say(
        f"{len(book.records)} measurements of {len({record.cell for record in book.records})} cells, "
        f"{points.disturbed()} of them disturbed by other work; the page: {page}"
    )
    screen.finish(
        "study", book.header.fingerprint, model=book.header.model, findings=found, cells=str(folder / CELLS),
        page=str(page), records=len(book.records), disturbed=points.disturbed(), is_random=book.header.facts.is_random,
        warm_s=book.header.warm_s, warm_cut=book.header.warm_cut, ceilings=book.header.ceilings,
    )  # fmt: skip


def _row(each: Finding) -> tuple[str, str, str, str]:
    return each.id, each.mark, each.claim, each.figure


def _folder(model: str, out: Path | None) -> Path:
    folder = out or Path("study-" + "".join(c if c.isalnum() or c in ".-" else "-" for c in Path(model).name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}. Give another --out.") from error
    return folder


def _texts(llm: LLM) -> tuple[Ids, ...]:
    """Questions as prompts; none where the model has random weights or no words."""
    if llm.facts.is_random:
        return ()
    try:
        return tuple(llm.render([{"role": "user", "content": text}]) for text in questions())
    except UserError:
        pass
    try:
        return tuple(llm.encode(text) for text in questions())
    except UserError:
        return ()


@contextmanager
def _telling(screen: Screen, what: str) -> Iterator[Callable[[str, float], None]]:
    """A bar of the time, with the cell under way. In a pipe: nothing."""
    if not screen.asides.is_terminal:
        yield lambda cell, share: None
        return
    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=screen.asides, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda cell, share: progress.update(task, completed=share, description=cell)

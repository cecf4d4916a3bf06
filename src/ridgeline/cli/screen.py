"""Where a verb writes: words to stdout, or to stderr with --json, whose document is then the last line of stdout."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ridgeline.models.pull import TABLE, find
from ridgeline.report.document import document, print_document
from ridgeline.report.tables import show
from ridgeline.run.machine import Fingerprint, fingerprint


class Screen:
    """One verb's output. `asides` (progress, notes, the account) always go to stderr."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.console = Console(stderr=json, highlight=False)
        self.asides = Console(stderr=True, highlight=False)

    def say(self, text: str = "") -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def aside(self, text: str, style: str = "") -> None:
        self.asides.print(text, markup=False, soft_wrap=True, style=style)

    def notes(self, model: str, notes: Iterable[str]) -> None:
        """What there is to say about how a model's file was read."""
        for note in notes:
            self.aside(f"{model}: {note}", style="dim")

    def stream(self, text: str) -> None:
        """Text as it comes, without a line's end."""
        out = sys.stderr if self.json else sys.stdout
        out.write(text)
        out.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        show(self.console, columns, rows, title)

    def finish(self, verb: str, machine: Fingerprint | None = None, **fields: Any) -> None:
        """Print the verb's document if one was asked for. The last thing a verb does."""
        if self.json:
            self.console.file.flush()
            print_document(document(verb, machine or fingerprint(), fields))

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of things done; call with how many more are. Nothing in a pipe."""
        if not self.asides.is_terminal:
            yield lambda more: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.asides, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda more: progress.advance(task, more)

    @contextmanager
    def fetching(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar of bytes; call with (done, in all). Nothing is shown until the first call, and nothing in a pipe.

        Before a model of the pull table is fetched, the terms of its licence are said, in a pipe too.
        """
        if what in TABLE and TABLE[what].terms and find(what) is None:
            self.aside(f"{what}: {TABLE[what].terms}", style="dim")
        if not self.asides.is_terminal:
            yield lambda done, total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.asides, transient=True) as progress:
            task = progress.add_task(f"fetching {what}", total=None, visible=False)
            yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)

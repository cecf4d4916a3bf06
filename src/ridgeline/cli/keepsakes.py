"""What a verb writes of a run besides what it prints: a trace, the ledger's rows. Refused before the run, not after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ridgeline.kit.errors import UserError

if TYPE_CHECKING:
    from ridgeline.llm import LLM

    from .screen import Screen

TraceOut = Annotated[
    Path | None,
    typer.Option(help="Write a trace for ui.perfetto.dev: steps, operators, requests, KV, batch.", metavar="FILE"),
]
LedgerOut = Annotated[
    Path | None,
    typer.Option(help="Write where every nanosecond went: FILE.jsonl, or FILE.parquet with pyarrow.", metavar="FILE"),
]


@dataclass(frozen=True)
class Keepsakes:
    """Files to write when the run is over."""

    trace: Path | None = None
    ledger: Path | None = None

    def check(self) -> None:
        """UserError for what could not be written."""
        for path in (self.trace, self.ledger):
            if path is not None and not path.parent.is_dir():
                raise UserError(f"there is no folder {path.parent}; {path.name} cannot be written into it.")
        if self.ledger is not None:
            from ridgeline.perf.ledger_rows import check_path  # noqa: PLC0415  heavy; --help must start in 0.3 s

            check_path(self.ledger)

    def write(self, llm: LLM, screen: Screen) -> None:
        """From the engine's account, as it is now."""
        if self.trace is None and self.ledger is None:
            return
        from ridgeline.perf.ledger_rows import write_ledger  # noqa: PLC0415  likewise
        from ridgeline.perf.trace import write_trace  # noqa: PLC0415  likewise

        recording = llm.recording()
        if self.trace is not None:
            write_trace(recording, self.trace)
            screen.aside(f"trace: {self.trace} (open it at ui.perfetto.dev)", style="dim")
        if self.ledger is not None:
            write_ledger(recording, self.ledger)
            screen.aside(f"ledger: {self.ledger}", style="dim")

"""Tables for people: rich on a terminal, aligned plain text in a pipe (never cut at 80 columns)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def show(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print one table. A column whose cells (title apart) all start with a digit, sign or dash is right-aligned."""
    right = [all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    if not console.is_terminal:
        console.print(plain(columns, rows, right, title), markup=False, highlight=False, soft_wrap=True)
        return
    from rich.table import Table  # noqa: PLC0415  rich's tables take 30 ms to import and --help needs none

    table = Table(title=title or None, title_justify="left", title_style="bold", header_style="dim", box=None)
    for column, is_right in zip(columns, right, strict=True):
        table.add_column(column, justify="right" if is_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], title: str = "") -> str:
    """The same as text, columns two blanks apart."""
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([title, *lines] if title else lines)


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "0123456789-–+<≈~"

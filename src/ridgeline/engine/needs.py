"""What options need of a program, as data, and the one place that subtracts what it gives (DESIGN §3.1).

Refuses a combination in one sentence that names the cure; everything else may combine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ridgeline.kit.capability import PAGES, TRUNCATION
from ridgeline.kit.errors import UserError
from ridgeline.ops.program import Program

from .config import EngineConfig
from .place import make_place


@dataclass(frozen=True, slots=True)
class Ask:
    """An option that is not for every program. shown: what was asked, as a person would write it; "": it was not."""

    shown: Callable[[EngineConfig], str]
    needs: frozenset[str]
    cure: str


ASKS = (
    Ask(lambda c: "" if c.kv == "auto" else f"kv={c.kv}", frozenset({PAGES}), "Leave kv at auto."),
    Ask(lambda c: f"spec={c.spec}" if c.spec else "", frozenset({TRUNCATION}), "Leave spec out."),
    Ask(
        lambda c: c.place if make_place(c.place).is_apart or make_place(c.place).partition else "",
        frozenset({PAGES}),
        "Leave place out.",
    ),
    Ask(lambda c: "" if c.paging else "paging=False", frozenset({PAGES}), "Leave paging on."),
)


def check_needs(config: EngineConfig, program: Program) -> None:
    """Raise UserError for the first option that needs what the program does not give."""
    for ask in ASKS:
        shown, lacking = ask.shown(config), ask.needs - program.gives
        if shown and lacking:
            raise UserError(
                f"{shown} needs {' and '.join(sorted(lacking))}; {program.name} keeps a recurrent state, which gives "
                f"{' and '.join(sorted(program.gives)) or 'nothing to combine with'}. {ask.cure}"
            )


def streams(config: EngineConfig, program: Program) -> int:
    """How many steps may run at a time: two where the place wants it, or may come to want it and nothing forbids it."""
    place = make_place(config.place)
    may_split = place.adapts and not config.one_stream and PAGES in program.gives
    return 2 if place.partition is not None or may_split else 1


def check_follows(program: Program) -> None:
    """Raise UserError for a program that cannot guess for another: what is not accepted has to be taken back."""
    if TRUNCATION not in program.gives:
        raise UserError(
            f"{program.name} cannot guess for another model: that needs {TRUNCATION}; its recurrent state gives "
            f"{' and '.join(sorted(program.gives))}. Choose a model with attention, or --spec ngram."
        )

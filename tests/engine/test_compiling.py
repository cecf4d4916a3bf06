"""Compiling: what is done may be taken before it was told, and what was told afterwards wakes nobody twice."""

from __future__ import annotations

import os
import select

from ridgeline.engine.compiling import Compiling
from ridgeline.state.messages import Add
from ridgeline.state.request import Grammar, Request, Sampling


class Quick:
    """Rules that are there at once."""

    def is_prepared(self, grammar: Grammar) -> bool:
        return False

    def prepare(self, grammar: Grammar) -> None:
        pass


def is_readable(number: int) -> bool:
    return bool(select.select([number], [], [], 0)[0])


def test_a_grammar_done_between_its_two_steps_does_not_end_the_engine() -> None:
    compiling = Compiling(Quick())  # type: ignore[arg-type]
    message = Add(Request("a", (1, 2), 4, Sampling(grammar=Grammar("regex", "a+"))))
    assert compiling.wants(message)
    compiling._inside.add("a")
    compiling._done.put((message, None))  # the compiling thread is here: put, and not told yet
    assert not is_readable(compiling.number)
    assert compiling.turn() == [(message, None)]
    os.eventfd_write(compiling.number, 1)
    assert is_readable(compiling.number)
    assert compiling.turn() == []
    assert not is_readable(compiling.number)  # else the engine would turn for ever
    compiling.close()

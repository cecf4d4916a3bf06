"""Last hidden states and predicted lengths that leave the engine: when they are due, whose they are, and that they do
not depend on the schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.schedule.scheduler import Scheduler
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

from .scripted import run_to_end, scripted_engine
from .tiny import LLAMA, TinyEngine, write_config

PROMPT = tuple(range(5, 40))


def states_of(events: list[TokenEvent]) -> dict[int, bytes]:
    """By the output tokens there were before."""
    told, output = {}, 0
    for event in events:
        if event.hidden:
            told[output] = event.hidden
        output += len(event.tokens)
    return told


def asked(name: str, **fields: Any) -> Request:
    return Request(name, PROMPT, 12, ignore_stop=True, **fields)


@pytest.mark.parametrize("options", [{}, {"step_tokens": 64, "chunk": 9}, {"spec": "ngram:k=3"}, {"kv": "int8"}])
def test_they_come_when_they_are_due(tmp_path: Path, options: dict[str, Any]) -> None:
    tiny = TinyEngine(write_config(tmp_path, LLAMA), **options)
    events = tiny.events(asked("one", hidden_every=5))
    told = states_of(events)
    assert min(told) == 0 and all(b - a >= 5 for a, b in zip(list(told), list(told)[1:], strict=False))
    assert all(len(state) == 4 * LLAMA["hidden_size"] for state in told.values())  # type: ignore[operator]
    assert not any(event.hidden for event in tiny.events(asked("two")))
    tiny.engine.close()


def test_they_do_not_depend_on_who_else_runs(tmp_path: Path) -> None:
    tiny = TinyEngine(write_config(tmp_path, LLAMA), weights="f32", step_tokens=64, prefix=False)
    alone = states_of(tiny.events(asked("alone", hidden_every=4)))
    for number in range(3):
        tiny.engine.add(Request(f"other-{number}", PROMPT[number:], 20, ignore_stop=True))
    crowd = [event for event in tiny.events(asked("crowd", hidden_every=4)) if event.request == "crowd"]
    assert states_of(crowd) == alone
    tiny.engine.close()


def test_the_head_makes_the_tokens_of_them(tmp_path: Path) -> None:
    """What is told is the row that was projected: its product with the (tied) embedding is largest at the token."""
    tiny = TinyEngine(write_config(tmp_path, LLAMA), weights="f32")
    events = tiny.events(asked("one", hidden_every=1))
    runner: Any = tiny.engine.runner
    head = next(line for line in runner.bound.program if line.op.kind == "head").weights[0].unpack()
    for event in events:
        state = np.frombuffer(event.hidden, "<f4")
        assert int((head @ state).argmax()) == event.tokens[0]
    tiny.engine.close()


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="hidden_every"):
        asked("one", hidden_every=-1).check(100, 1000)


class Counting:
    """Says a length that grows with what it sees."""

    every = 4

    def __init__(self) -> None:
        self.asked: list[int] = []

    def length(self, sequence: Any, hidden: Any) -> float:
        self.asked.append(sequence.tokens_output)
        return sequence.tokens_output + 1000.0 if sequence.tokens_output > 4 else 0.0


def test_lengths_are_predicted_anew_and_never_leave_what_is_possible() -> None:
    engine, counting = scripted_engine(), Counting()
    scheduler: Scheduler = engine.scheduler
    scheduler.sight.refiner = counting
    engine.add(asked("one"))
    lengths = [event.length for event in run_to_end(engine)]
    assert counting.asked == [0, 4, 8]
    assert lengths == [0.0] * 8 + [12.0] + [0.0] * 3  # 0: it cannot say yet; at most max_tokens


def test_the_mean_of_a_prompt_is_that_of_its_beginnings(tmp_path: Path) -> None:
    tiny = TinyEngine(write_config(tmp_path, LLAMA), step_tokens=64, chunk=9)
    (mean,) = states_of(tiny.events(asked("m", hidden_every=50, hidden_mean=True, prompt_logprobs=0))).values()
    each = []
    for count in range(1, len(PROMPT) + 1):
        (event,) = tiny.events(Request(f"r{count}", PROMPT[:count], 1, hidden_every=1))
        each.append(np.frombuffer(event.hidden, "<f4").astype(np.float64))
    np.testing.assert_allclose(np.frombuffer(mean, "<f4"), np.mean(each, 0), rtol=1e-6, atol=1e-7)  # rounds once
    with pytest.raises(UserError, match="hidden_mean"):
        asked("x", hidden_every=1, hidden_mean=True).check(1000, 1000)

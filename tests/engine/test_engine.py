"""The engine's loop: plan, submit, collect, observe, commit."""

from __future__ import annotations

from typing import Any

import pytest

from ridgeline.kit.errors import UserError
from ridgeline.state.plan import StepPlan, StepResult
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence

from .scripted import CONTEXT, VOCABULARY, run_to_end, scripted_engine


class Watching:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.finished: list[tuple[str, str, float]] = []

    def on_step(self, plan: StepPlan, result: StepResult) -> None:
        self.tokens.append(plan.tokens)
        assert result.ended_s > result.started_s

    def on_finish(self, sequence: Sequence, reason: str, at_s: float) -> None:
        self.finished.append((sequence.request.id, reason, at_s))


def test_the_observer_sees_every_step_and_every_end() -> None:
    watching = Watching()
    engine = scripted_engine(observer=watching)
    engine.add(Request("a", (1, 2, 3), 3))
    engine.add(Request("b", (4,), 9))
    engine.step()
    engine.cancel("b")
    events = run_to_end(engine)
    assert watching.tokens == [4, 1, 1]
    assert watching.finished == [("b", "cancelled", pytest.approx(0.001)), ("a", "length", events[-1].at_s)]


def test_an_idle_engine_does_nothing() -> None:
    engine = scripted_engine()
    assert not engine.has_work and engine.step() == []
    engine.check()
    engine.close()


@pytest.mark.parametrize(
    "fields",
    [{"prompt": ()}, {"prompt": (VOCABULARY,)}, {"prompt": (1,) * CONTEXT}, {"max_tokens": 0}, {"stop_ids": (-3,)}],
)
def test_a_wrong_request_changes_nothing(fields: dict[str, Any]) -> None:
    engine = scripted_engine()
    with pytest.raises(UserError):
        engine.add(Request(**{"id": "a", "prompt": (1,), "max_tokens": 3} | fields))
    assert not engine.has_work
    engine.check()

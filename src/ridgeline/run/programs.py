"""ProgramsRunner: a step that runs several Programs, each on its own runner with its own state (DESIGN §1).

Splits the plan by program, joins the answers; runs nothing itself. The time of every program's lines stays apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from ridgeline.kit.errors import InvariantError
from ridgeline.state.plan import RowResult, StepPlan, StepResult
from ridgeline.state.ports import StepRunner


class ProgramsRunner:
    """Implements state.ports.StepRunner. Programs run in the order of `runners`; "model" is one of them."""

    def __init__(self, runners: Mapping[str, StepRunner]) -> None:
        if "model" not in runners:
            raise InvariantError("no runner for the program 'model'")
        self.runners = dict(runners)

    def submit(self, plan: StepPlan) -> StepResult:
        rows: list[tuple[RowResult, ...]] = [()] * len(plan.entries)
        results: dict[str, StepResult] = {}
        for program, runner in self.runners.items():
            places = [place for place, entry in enumerate(plan.entries) if entry.program == program]
            moved = tuple(transfer for transfer in plan.transfers if transfer.program == program)
            if not places and not moved:
                continue
            entries = tuple(plan.entries[place] for place in places)
            part = StepPlan(entries, plan.released, moved, takes_turns=plan.takes_turns)
            result = results[program] = runner.collect(runner.submit(part))
            for place, answers in zip(places, result.rows, strict=True):
                rows[place] = answers
        unknown = {entry.program for entry in plan.entries} - set(self.runners)
        if unknown:
            raise InvariantError(f"no runner for the program {', '.join(sorted(unknown))}")
        return _joined(tuple(rows), results)

    def collect(self, ticket: object) -> StepResult:
        if not isinstance(ticket, StepResult):
            raise InvariantError("collect got a ticket that submit never gave")
        return ticket


def _joined(rows: tuple[tuple[RowResult, ...], ...], results: Mapping[str, StepResult]) -> StepResult:
    """One result of the parts of a step."""
    model = results.get("model")
    return StepResult(
        rows,
        min(result.started_s for result in results.values()),
        max(result.ended_s for result in results.values()),
        model.line_ns if model is not None else None,
        sum(result.native_calls for result in results.values()),
        {name: r.line_ns for name, r in results.items() if name != "model" and r.line_ns is not None},
        sum(result.transfer_ns for result in results.values()),
        model.experts if model is not None else None,
        sum(result.native_ns for result in results.values()),
    )

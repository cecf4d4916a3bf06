"""Ledger: where each request's wall time went, and what each caused; every nanosecond once (A2, A12).

Made late, from the account's StepTable and the client's own notes. Refuses to know what was not seen whole: requests
of before the account began, or of steps it has forgotten, are counted and left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.ops.program import Program
from ridgeline.run.machine import Machine

from .account import StepTable
from .intervals import INTERVALS, ClientNote, Segments, Steps, segments_of, to_ns
from .overlap import owned_ns, unowned_ns
from .phases import ACTIVITIES, DRAFT
from .shares import BY_ATTENTION, BY_ROWS, RULE, attention_weights, bases, largest_remainder, whole_weights
from .timeline import STEP_COLUMNS, Ended, Timeline

__all__ = ["INTERVALS", "ClientNote", "RequestLedger", "RunLedger", "make_ledger"]

HOST, GAPS, OTHERS = "host", "gaps", "other programs"

Integers = npt.NDArray[np.int64]


class RequestLedger(msgspec.Struct, frozen=True):
    """One request. wall_ns: by interval, only those that are not 0; they sum to e2e_ns. cost_ns: by phase, its shares
    of the steps (RULE); costs: the same by phase and operator group.

    prompt_tokens = cached_tokens + computed_tokens; recomputed_tokens were computed once before.
    """

    request_id: str
    arrival_s: float
    wall_ns: dict[str, int]
    cost_ns: dict[str, int]
    e2e_ns: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    costs: dict[str, dict[str, int]] = {}
    finish: str = ""
    preemptions: int = 0
    tokens_guessed: int = 0
    tokens_accepted: int = 0

    @property
    def residual_ns(self) -> int:
        return self.wall_ns.get("residual", 0)


class RunLedger(msgspec.Struct):
    """A run. wall_ns: summed over requests. operators_ns + gaps_ns + host_ns = step_ns; step_ns + idle_ns = engine_ns,
    from the first step's begin to the last one's end. account_ns: its own cost.
    partial: requests left out, because they were not seen whole."""

    requests: tuple[RequestLedger, ...]
    wall_ns: dict[str, int]
    operators_ns: int
    gaps_ns: int
    host_ns: int
    idle_ns: int
    step_ns: int = 0
    engine_ns: int = 0
    steps: int = 0
    partial: int = 0
    account_ns: int = 0  # of host_ns: noting, and summing up between steps
    share_rule: str = RULE

    @property
    def residual_ns(self) -> int:
        return self.wall_ns.get("residual", 0)

    def request(self, request_id: str) -> RequestLedger | None:
        return next((one for one in self.requests if one.request_id == request_id), None)


class StepLedger(msgspec.Struct, frozen=True):
    """Every step in nanoseconds, int64 [steps]; operators: [steps][groups]. host: all that is neither an operator nor
    between two of a step: plan, batch, kept state moved, commit, and the loop since the step before."""

    groups: tuple[str, ...]
    operators: Integers
    gaps: Integers
    host: Integers
    idle: Integers  # before the step
    engine_ns: int

    @property
    def step(self) -> Integers:
        return np.asarray(self.operators.sum(1) + self.gaps + self.host, np.int64)


def make_ledger(
    table: StepTable, notes: Mapping[str, ClientNote] | None = None, program: Program | None = None,
    machine: Machine | None = None,
) -> RunLedger:  # fmt: skip
    """The ledger of all requests that have ended. program and machine: attention is shared by its counted time; without
    them by tokens."""
    timeline = table.timeline
    if timeline is None or not len(table.step_times()[timeline.first_step :]):
        return RunLedger((), {}, 0, 0, 0, 0)
    steps, whole = Steps.of(table, timeline), step_ledger(table, timeline)
    costs = _costs(timeline, whole, program, machine)
    requests, wall, partial = [], dict.fromkeys(INTERVALS, 0), 0
    for one in timeline.ended:
        if one.arrival_s < timeline.since_s:
            partial += 1
            continue
        segments = segments_of(steps, one, (notes or {}).get(one.request))
        made = _request(one, steps, segments, costs.get(one.sequence, {}))
        for name, spent in made.wall_ns.items():
            wall[name] += spent
        requests.append(made)
    return RunLedger(
        tuple(requests), {name: spent for name, spent in wall.items() if spent}, int(whole.operators.sum()),
        int(whole.gaps.sum()), int(whole.host.sum()), int(whole.idle.sum()), int(whole.step.sum()), whole.engine_ns,
        len(whole.gaps), partial, table.account_ns,
    )  # fmt: skip


def step_ledger(table: StepTable, timeline: Timeline) -> StepLedger:
    """Where each step's time went. A step reaches from the end of the one before, idle time taken off."""
    times = np.rint(table.step_times()[timeline.first_step :] * 1e9).astype(np.int64)
    began, ended = times[:, 0], times[:, 1]
    rows = timeline.step_rows()
    native, transfer, other = rows[:, 0], rows[:, 1], rows[:, 2]
    groups, operators = timeline.parts, rows[:, len(STEP_COLUMNS) :]
    if other.any():
        groups, operators = (*groups, OTHERS), np.concatenate([operators, other[:, None]], 1)
    idle = np.zeros(len(began), np.int64)
    for step, begin_s, end_s in timeline.idle_rows():
        if step > timeline.first_step:
            idle[int(step) - timeline.first_step] = to_ns(end_s) - to_ns(begin_s)
    shares = table.step_shares()[timeline.first_step :]
    is_apart = bool((shares == 1.0).all())
    inside = ended - began if is_apart else owned_ns(began, ended, shares)
    idle = np.minimum(idle, np.maximum(0, began - np.concatenate([began[:1], ended[:-1]])))
    timed = operators.sum(1)
    covered = np.minimum(np.where(native > 0, np.maximum(native, timed), inside - transfer), inside)
    between = np.diff(ended, prepend=ended[0]) - np.where(np.arange(len(began)) > 0, inside, 0) - idle
    if not is_apart:
        between = unowned_ns(began, ended, shares, inside, idle)
    gaps = np.maximum(covered - timed, 0)
    host = inside - timed - gaps + between
    return StepLedger(groups, operators, gaps, host, idle, int(ended[-1] - began.min()))


def _costs(
    timeline: Timeline, whole: StepLedger, program: Program | None, machine: Machine | None
) -> dict[int, dict[str, dict[str, int]]]:
    """{sequence: {phase: {group: ns}}}, shares of the steps."""
    rows = timeline.entry_rows()
    if not len(rows):
        return {}
    step, sequence, activity, start, tokens, _, logit_rows = rows.T
    step = step - timeline.first_step
    count = len(whole.gaps)
    basis = bases(program)
    attention = attention_weights(program, machine, start, tokens) if program is not None and machine else {}
    model, other = activity != DRAFT, activity == DRAFT
    sequences, place = np.unique(sequence, return_inverse=True)
    key = place * len(ACTIVITIES) + activity
    found: dict[int, dict[str, dict[str, int]]] = {}
    shared = [*zip(whole.groups, whole.operators.T, strict=True), (GAPS, whole.gaps), (HOST, whole.host)]
    for group, total in shared:
        weight = tokens
        if group in (GAPS, HOST):
            weight = np.ones_like(tokens)
        elif group == OTHERS:
            weight = np.where(other, tokens, 0)
        elif basis.get(group) == BY_ROWS:
            weight = np.where(model, logit_rows, 0)
        elif basis.get(group) == BY_ATTENTION and group in attention:
            weight = np.where(model, whole_weights(np.where(model, attention[group], 0), step, count), 0)
        else:
            weight = np.where(model, tokens, 0)
        parts = largest_remainder(np.ascontiguousarray(total), step, weight)
        sums = np.zeros(len(sequences) * len(ACTIVITIES), np.int64)
        np.add.at(sums, key, parts)
        for at in np.flatnonzero(sums).tolist():
            who, what = divmod(at, len(ACTIVITIES))
            phases = found.setdefault(int(sequences[who]), {})
            phases.setdefault(ACTIVITIES[what], {})[group] = int(sums[at])
    return found


def _request(one: Ended, steps: Steps, segments: Segments, costs: dict[str, dict[str, int]]) -> RequestLedger:
    wall = dict.fromkeys(INTERVALS, 0)
    for name, begin, end in segments:
        wall[name] += end - begin
    cached, computed, recomputed = _tokens(steps, one)
    return RequestLedger(
        one.request, segments[0][1] * 1e-9, {name: spent for name, spent in wall.items() if spent},
        {phase: sum(groups.values()) for phase, groups in costs.items()}, segments[-1][2] - segments[0][1],
        one.prompt_tokens, cached, one.output_tokens, computed, recomputed, costs, one.reason, one.preemptions,
        one.tokens_guessed, one.tokens_accepted,
    )  # fmt: skip


def _tokens(steps: Steps, one: Ended) -> tuple[int, int, int]:
    """(prompt tokens others had computed, prompt tokens computed, tokens computed once more), entry by entry."""
    reached = cached = computed = again = 0
    for _, _, activity, start, _, end, _ in steps.of_sequence(steps.entries, one.sequence).tolist():
        if activity == DRAFT:
            continue
        skipped = min(start, one.prompt_tokens) - min(reached, one.prompt_tokens)
        cached += max(0, skipped)
        again += max(0, min(end, reached) - start)
        computed += max(0, min(end, one.prompt_tokens) - max(start, min(reached, one.prompt_tokens)))
        reached = max(reached, start, end)
    return cached, computed, again

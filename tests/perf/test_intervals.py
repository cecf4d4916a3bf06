"""A life in which every interval occurs, each with a length of its own, against sums written down by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from ridgeline.perf.account import Account
from ridgeline.perf.intervals import INTERVALS, ClientNote
from ridgeline.perf.ledger import RequestLedger, make_ledger
from ridgeline.state.plan import Entry, LogitRow, StepPlan, StepResult
from ridgeline.state.request import Request, Sampling
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import LoadBlock

OTHER, OURS = 7, 8
TABLE = np.arange(8, dtype=np.int32)
MS = 1_000_000


def entry(start: int, tokens: int, *, chooses: bool = True, **more) -> Entry:
    rows = (LogitRow(tokens - 1, start + tokens, Sampling()),) if chooses else ()
    return Entry(OURS, start, (5,) * tokens, (TABLE,), rows, **more)


# the gap before the step, what it is, the step, what it is, and how the plan shows it; milliseconds
LIFE = (
    (2, "queue_untried", 31, "queue_untried", {}),
    (3, "queue_untried", 34, "queue_blocked_budget", {"held": ((OURS, "budget"),)}),
    (4, "queue_blocked_budget", 36, "queue_blocked_blocks", {"held": ((OURS, "blocks"),)}),
    (5, "queue_blocked_blocks", 40, "queue_blocked_policy", {}),  # tried before; now somebody else stands in front
    (6, "queue_blocked_policy", 45, "prefill", {"entry": entry(16, 20), "transfers": (LoadBlock(0, 9, 0),)}),
    (7, "engine_gap", 52, "decode", {"entry": entry(36, 1)}),
    (8, "engine_gap", 61, "verify", {"entry": entry(37, 4, tentative=3)}),
    (9, "engine_gap", 72, "draft", {"entry": entry(0, 2, program="draft")}),
    (10, "engine_gap", 85, "wait_in_batch", {}),
    (11, "engine_gap", 100, "preempted", {"released": (OURS,)}),
    (12, "preempted", 117, "recompute", {"entry": entry(0, 39)}),
    (13, "engine_gap", 50, "decode", {"entry": entry(39, 1)}),
)
RESTORE = 14
BEFORE = {"parse": 15, "render": 16, "tokenize": 17, "grammar": 18, "transfer": 19}
AFTER = {"tokenize": 20, "client_stall": 21}
DELIVER, RESIDUAL = 22, 1


def lived() -> RequestLedger:
    account = Account()
    begun = 1000
    now = begun + sum(BEFORE.values()) + RESIDUAL
    arrival = now
    other = Entry(OTHER, 0, (5,), (TABLE + 100,), ())
    account.on_step(StepPlan((other,)), StepResult((), (now - 50) / 1e3, now / 1e3))  # it arrives as a step ends
    for gap, _, took, _, plan in LIFE:
        plan = dict(plan)
        own = plan.pop("entry", None)
        moved = plan.get("transfers", ())
        started, now = now + gap, now + gap + took
        entries = (other, own) if own is not None else (other,)
        result = StepResult((), started / 1e3, now / 1e3, transfer_ns=RESTORE * MS if moved else 0)
        account.on_step(StepPlan(entries, **plan), result)
    request = Request("ours", tuple(range(36)), 5)
    sequence = Sequence(OURS, request, arrival / 1e3, list(range(41)), preemptions=1)
    account.on_finish(sequence, "length", now / 1e3)
    ended = now + sum(AFTER.values()) + DELIVER
    note = ClientNote(
        begun / 1e3, {name: ms * MS for name, ms in BEFORE.items()}, now / 1e3, ended / 1e3,
        {name: ms * MS for name, ms in AFTER.items()},
    )  # fmt: skip
    (one,) = make_ledger(account.table(), {"ours": note}).requests
    assert one.e2e_ns == (ended - begun) * MS
    return one


VANISHED = {"queue_untried": 250 * MS}


def vanished() -> RequestLedger:
    """Cancelled before any step began."""
    account = Account()
    other = Entry(OTHER, 0, (5,), (TABLE,), ())
    for step in range(2):
        account.on_step(StepPlan((other,)), StepResult((), step * 1.0, step + 0.5))
    account.on_finish(Sequence(OURS, Request("gone", (1, 2), 5), 0.625, [1, 2]), "cancelled", 0.875)
    (one,) = make_ledger(account.table()).requests
    return one


def expected() -> dict[str, int]:
    wall = {name: 0 for name in INTERVALS}
    for gap, before, took, during, plan in LIFE:
        wall[before] += gap
        wall[during] += took - (RESTORE if "transfers" in plan else 0)
    wall["restore"] += RESTORE
    for parts in (BEFORE, AFTER, {"deliver": DELIVER, "residual": RESIDUAL}):
        for name, ms in parts.items():
            wall[name] += ms
    return {name: ms * MS for name, ms in wall.items()}


def test_every_interval_is_what_it_was():
    one = lived()
    assert one.wall_ns == expected()
    assert sum(one.wall_ns.values()) == one.e2e_ns


def test_swapping_any_two_names_would_fail():
    """Every interval occurs, and no two are equally long: so the comparison above tells any two apart."""
    wall = expected()
    assert set(wall) == set(INTERVALS) and all(wall.values())
    found = lived().wall_ns
    for a, b in combinations(INTERVALS, 2):
        swapped = found | {a: found[b], b: found[a]}
        assert swapped != wall, f"{a} and {b} are alike"


def test_who_vanishes_between_two_steps_only_waited():
    assert vanished().wall_ns == VANISHED


def test_tokens_are_counted_where_they_were_computed():
    one = lived()
    assert (one.prompt_tokens, one.cached_tokens, one.computed_tokens) == (36, 16, 20)
    assert one.recomputed_tokens == 38  # positions 0 to 37 of the second time; the guesses never counted
    assert one.output_tokens == 5


def test_a_cancelled_request_that_never_ran_only_waited():
    account = Account()
    other = Entry(OTHER, 0, (5,), (TABLE,), ())
    for step in range(3):
        account.on_step(StepPlan((other,)), StepResult((), step * 1.0, step + 0.75))
    gone = Sequence(OURS, Request("gone", (1, 2), 5), 0.5, [1, 2])
    account.on_finish(gone, "cancelled", 2.5)
    (one,) = make_ledger(account.table()).requests
    assert one.wall_ns == {"queue_untried": 2_000 * MS} and one.cost_ns == {} and one.finish == "cancelled"


def test_what_was_not_seen_whole_is_left_out_and_counted():
    account = Account()
    other = Entry(OTHER, 0, (5,), (TABLE,), ())
    account.on_step(StepPlan((other,)), StepResult((), 1.0, 2.0))
    account.table()
    account.reset()
    account.on_step(StepPlan((other,)), StepResult((), 2.5, 3.0))
    for name, arrival_s in (("early", 0.5), ("late", 2.25)):
        account.on_finish(Sequence(OURS, Request(name, (1,), 5), arrival_s, [1]), "cancelled", 3.0)
    ledger = make_ledger(account.table())
    assert [one.request_id for one in ledger.requests] == ["late"] and ledger.partial == 1

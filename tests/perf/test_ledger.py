"""The conserved ledger: every nanosecond of a request has one name, every nanosecond of a step one owner."""

from __future__ import annotations

from ridgeline.perf.account import Account
from ridgeline.perf.ledger import INTERVALS, make_ledger
from ridgeline.report.ledger_view import step_line
from ridgeline.state.request import Request

from ..engine.scripted import run_to_end, scripted_engine


def test_intervals_are_those_of_the_specification_in_its_order():
    assert INTERVALS == (
        "parse", "render", "tokenize", "grammar", "queue_untried", "queue_blocked_budget", "queue_blocked_blocks",
        "queue_blocked_policy", "restore", "prefill", "decode", "draft", "verify", "recompute", "wait_in_batch",
        "preempted", "transfer", "engine_gap", "deliver", "client_stall", "residual",
    )  # fmt: skip


def test_one_request_alone():
    account = Account()
    engine = scripted_engine(observer=account)
    engine.add(Request("one", (1, 2, 3), 4, ignore_stop=True, arrival_s=0.0))
    run_to_end(engine)
    ledger = make_ledger(account.table())
    (one,) = ledger.requests
    assert one.wall_ns == {"prefill": 1_000_000, "decode": 3_000_000}  # a step takes a millisecond there
    assert (one.e2e_ns, one.prompt_tokens, one.cached_tokens, one.computed_tokens, one.output_tokens) == (
        4_000_000, 3, 0, 3, 4,
    )  # fmt: skip
    assert one.cost_ns == one.wall_ns and ledger.step_ns == ledger.engine_ns == one.e2e_ns


def test_the_account_says_what_it_costs_itself():
    account = Account()
    for index in range(3):
        engine = scripted_engine(observer=account)
        engine.add(Request(f"r{index}", (1, 2, 3), 4, ignore_stop=True, arrival_s=0.0))
        run_to_end(engine)
    ledger = make_ledger(account.table())
    assert ledger.account_ns == account.table().account_ns > 0
    assert f"{ledger.steps} steps: " in step_line(ledger) and "of that the account itself " in step_line(ledger)
    account.reset()
    assert account.table().account_ns == 0


def test_nothing_ran():
    ledger = make_ledger(Account().table())
    assert ledger.requests == () and ledger.engine_ns == 0

"""One request's verdict: its own waiting where that is most of its time, else the run's; every interval is owned."""

from __future__ import annotations

import pytest

from ridgeline.perf.intervals import INTERVALS
from ridgeline.perf.ledger import RequestLedger
from ridgeline.perf.request_verdict import CAUSES_OF, judge_request
from ridgeline.perf.rules import CAUSES
from ridgeline.perf.verdict import judge

from .made_up import MADE_UP

WORKED_ON = {"prefill", "decode", "draft", "verify", "wait_in_batch", "residual"}


def lived(**wall_ms: int) -> RequestLedger:
    wall = {name: spent * 10**6 for name, spent in wall_ms.items()}
    return RequestLedger("one", 0.0, wall, {}, sum(wall.values()), 10, 0, 10)


@pytest.mark.parametrize(
    ("wall", "cause"),
    [
        ({"queue_untried": 60, "prefill": 20, "decode": 20}, "queue"),
        ({"queue_blocked_blocks": 30, "preempted": 30, "decode": 40}, "kv_capacity"),
        ({"client_stall": 90, "decode": 30}, "client"),
        ({"restore": 50, "decode": 40}, "link"),
        ({"render": 1, "tokenize": 60, "prefill": 20, "decode": 20}, "tokenizer"),
        ({"engine_gap": 60, "decode": 40}, "host"),
    ],
)
def test_what_a_request_waited_for_is_its_own_verdict(wall, cause):
    found = judge_request(lived(**wall), judge(MADE_UP["compute"][0]))
    assert (found.cause, found.is_of_run) == (cause, False) and 0.4 <= found.share < 1


def test_a_request_that_was_worked_on_has_the_run_s_verdict():
    found = judge_request(lived(queue_untried=10, prefill=30, decode=60), judge(MADE_UP["compute"][0]))
    assert (found.cause, found.is_of_run, found.share) == ("compute", True, pytest.approx(0.9))


def test_every_interval_is_waiting_of_one_cause_or_work():
    owned = [name for names in CAUSES_OF.values() for name in names]
    assert sorted(owned) == sorted(set(INTERVALS) - WORKED_ON) and set(CAUSES_OF) <= set(CAUSES)

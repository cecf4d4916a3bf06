"""Verdicts: every cause of the closed list is named first on evidence that shows it, and only numbers decide."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.perf.evidence import Evidence, quantities
from ridgeline.perf.rules import CAUSES, HEALTHY, NOT_HERE, RULES, UNDETERMINED
from ridgeline.perf.verdict import judge
from ridgeline.report.verdict_lines import time_rows, verdict_line, verdict_lines, verdict_rows
from ridgeline.run.machine import Pace

from .made_up import MADE_UP, TUNED, changed, part, system, waiting

CASES = [(cause, evidence) for cause, many in MADE_UP.items() for evidence in many]


@pytest.mark.parametrize(("cause", "evidence"), CASES, ids=[cause for cause, _ in CASES])
def test_each_cause_is_named_first(cause, evidence):
    verdict = judge(evidence)
    assert verdict.cause == cause, verdict.measured
    assert 0 <= verdict.share <= 1.01 and 0 <= verdict.gap <= 1
    assert verdict_lines(verdict)[0].startswith(cause)


def test_the_closed_list_is_the_specification_s():
    assert set(MADE_UP) == set(CAUSES)
    assert set(CAUSES) == {
        "weight_bandwidth", "kv_bandwidth", "compute", "kernel", "dispatch", "host", "tokenizer", "sampling", "queue",
        "kv_capacity", "threads", "memory_system", "client", "underload", "link", "imbalance", "clock", "healthy",
        "undetermined",
    }  # fmt: skip


def test_every_rule_speaks_of_quantities_there_are_and_says_how_it_is_planted():
    known = {name for _, evidence in CASES for name in quantities(evidence)}
    for rule in RULES:
        assert rule.share in known and rule.words and rule.plant
        assert {condition.quantity for condition in rule.conditions} <= known
    assert {rule.cause for rule in RULES if rule.plant == NOT_HERE} == {"imbalance"}


@pytest.mark.parametrize(
    ("cause", "worse"),
    [
        ("host", lambda more: changed(host_s=0.03 + more, observed_s=1.0 + more)),
        (
            "dispatch",
            lambda more: changed(between_s=more, step_s=0.91 + more, observed_s=1.0 + more, native_calls=30_000),
        ),
        ("tokenizer", lambda more: changed(tokenize_s=more, observed_s=1.0 + more)),
        ("underload", lambda more: changed(observed_s=1.0 + more)),
        ("threads", lambda more: changed(process=system(wait_s=more))),
        ("queue", lambda more: changed(waits=waiting(queue_untried=min(4.0, more)))),
        ("sampling", lambda more: changed(parts=part(3, seconds=more), step_s=0.95 + more, observed_s=1.0 + more)),
    ],
)
def test_more_of_a_cause_never_hides_it(cause, worse):
    named = [judge(worse(0.05 * step)).cause == cause for step in range(100)]
    assert named[-1] and named == sorted(named)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 1), st.integers(0, 10_000))
def test_any_numbers_give_a_verdict(host_s, idle_s, occupancy, faults):
    evidence = changed(
        host_s=host_s, observed_s=1.0 + host_s + idle_s, kv_occupancy=occupancy, process=system(major_faults=faults)
    )
    verdict = judge(evidence)
    assert verdict.cause in CAUSES
    assert all(0 <= one.share <= 1.0001 for one in verdict.next)


def test_what_was_not_measured_fires_no_rule():
    bare = changed(process=None, waits=None, pace=None, tokenize_s=None, foreign_share=None, kv_occupancy=None)
    assert judge(bare).cause == HEALTHY
    assert judge(changed(steps=0, observed_s=0.0)).cause == UNDETERMINED


def test_a_machine_that_is_slower_around_the_run_excuses_it_and_a_faster_one_does_not():
    slow = changed(parts=part(0, seconds=0.9), observed_s=1.3, step_s=1.25, operators_s=1.21)
    assert judge(slow).cause != HEALTHY
    assert judge(msgspec.structs.replace(slow, pace=Pace(0.75, 0.75, 0.0))).cause == HEALTHY
    assert quantities(changed(pace=Pace(1.3, 1.3, 0.0))) == quantities(TUNED) | {
        "arithmetic now": 1.3, "read now": 1.3, "slower now": 0.0,
    }  # fmt: skip


def test_calm_steps_tell_what_a_disturbed_run_could_have_been():
    slow = changed(parts=part(0, seconds=0.75), observed_s=1.3, step_s=1.25, operators_s=1.06)
    assert judge(slow).cause != HEALTHY and judge(msgspec.structs.replace(slow, calm=1.05)).cause == HEALTHY


def test_a_cure_is_priced_with_a_band_and_said_to_be_estimated():
    verdict = judge(MADE_UP["weight_bandwidth"][0])
    change = verdict.change
    assert change is not None and change.option == "--weights q4_1" and change.low <= change.gain <= change.high
    text = "\n".join(verdict_lines(verdict))
    assert "try first: --weights q4_1   estimated 2.00×" in text and "GB/s measured here" in text
    assert verdict_line(verdict).startswith("Verdict    weight_bandwidth")


def test_a_verdict_and_its_evidence_travel_as_json():
    for _, evidence in CASES:
        again = msgspec.json.decode(msgspec.json.encode(evidence), type=Evidence)
        assert judge(again) == judge(evidence)
        document = msgspec.to_builtins(judge(evidence))
        assert {"cause", "share", "gap", "ceiling", "evidence", "next", "changes"} <= set(document)


def test_the_tables_hold_every_operator_and_all_of_the_time():
    assert [row[0] for row in verdict_rows(TUNED)][-1] == "between operators"
    assert len(verdict_rows(TUNED)) == len(TUNED.parts) + 1
    assert [row[0] for row in time_rows(TUNED)] == [
        "steps", "between steps", "text to tokens and back", "nobody was being served",
    ]  # fmt: skip


def test_no_rule_knows_a_model_or_a_machine():
    """Thresholds are shares and ratios: nothing in the table is a second, a byte or a name of a device."""
    text = (Path(__file__).parents[2] / "src/ridgeline/perf/rules.py").read_text()
    assert not re.search(r"smollm|qwen|xeon|GB/s", text, re.IGNORECASE)

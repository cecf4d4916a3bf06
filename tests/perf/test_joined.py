"""Requests that change their engine, joined: every nanosecond once, the way between as `transfer`, and nobody twice;
on two accounts of made-up steps, one request's whole life known beforehand."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.perf.account import Account
from ridgeline.perf.intervals import INTERVALS, ClientNote
from ridgeline.perf.joined import JoinedRecording, joined_ledger, one_after_another
from ridgeline.perf.ledger import RunLedger
from ridgeline.perf.ledger_rows import IDLE, ledger_rows
from ridgeline.perf.recording import Recording
from ridgeline.perf.trace import ENGINE, NEXT, REQUESTS, STEPS, make_trace
from ridgeline.state.event import HANDED_ON
from ridgeline.state.plan import Entry, LogitRow, StepPlan, StepResult
from ridgeline.state.request import Request, Sampling
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import LoadBlock

TABLE = np.arange(8, dtype=np.int32)
MS = 1_000_000
PROMPT = 20


def rows_of(name: str, start: int, tokens: int) -> tuple[LogitRow, ...]:
    """A token is chosen when the prompt is done."""
    is_due = name == "other" or start + tokens >= PROMPT
    return (LogitRow(tokens - 1, start + tokens, Sampling()),) if is_due else ()


@dataclass
class Node:
    """One engine: at, the end of its last step, and everything else in milliseconds, on its own clock."""

    at: int = 0
    behind: int = 0  # what its clock shows less than the other's
    account: Account = field(default_factory=Account)
    known: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        return self.known.setdefault(name, len(self.known))

    def step(self, gap: int, took: int, *who: tuple[str, int, int], restore: int = 0) -> None:
        """who: name, start, tokens."""
        entries = tuple(Entry(self.number(one[0]), one[1], (5,) * one[2], (TABLE,), rows_of(*one)) for one in who)
        begun, self.at = self.at + gap, self.at + gap + took
        moved = (LoadBlock(0, 9, 0),) if restore else ()
        seconds = [(time - self.behind) / 1e3 for time in (begun, self.at)]
        self.account.on_step(StepPlan(entries, transfers=moved), StepResult((), *seconds, transfer_ns=restore * MS))

    def end(
        self, name: str, reason: str, arrival: int, entered: int, at: int | None = None, first: bool = False
    ) -> None:
        tokens = list(range(PROMPT + 3))
        sequence = Sequence(self.number(name), Request(name, tuple(range(PROMPT)), 9), arrival / 1e3, tokens)
        sequence.hands_on, sequence.entered_s = first, (entered - self.behind) / 1e3
        self.account.on_finish(sequence, reason, ((self.at if at is None else at) - self.behind) / 1e3)


def ledger_of(first: Node, second: Node, notes: dict[str, ClientNote] | None = None) -> RunLedger:
    nodes = {"prefill-0": first, "decode-0": second}
    ledger = joined_ledger({name: Recording(node.account.table(), notes or {}) for name, node in nodes.items()})
    names = [one.request_id for one in ledger.requests]
    assert len(names) == len(set(names))
    for one in ledger.requests:
        assert sum(one.wall_ns.values()) == one.e2e_ns
        assert min(one.wall_ns.values(), default=0) >= 0 and set(one.wall_ns) <= set(INTERVALS)
    assert sum(ledger.wall_ns.values()) == sum(one.e2e_ns for one in ledger.requests)
    return ledger


def handed_on(behind: int = 0) -> tuple[Node, Node]:
    """It comes at 0, waits 2, is computed in steps of 10 and 11 with 3 between them, and leaves at 26."""
    first, second = Node(), Node(behind=behind)
    first.step(2, 10, ("q", 0, 12))
    first.step(3, 11, ("q", 12, PROMPT - 12))
    first.end("q", HANDED_ON, 0, 0, first=True)
    first.step(1, 40, ("other", 0, 9))
    return first, second


def answer(second: Node, restore: int = 2) -> None:
    """There at 33; waits 4 for a step of 6, in which it is unpacked, and one of 8 after a gap of 1."""
    second.at = 30
    second.step(0, 2, ("other", 0, 9))
    second.step(5, 6, ("q", PROMPT, 1), ("other", 9, 1), restore=restore)
    second.step(1, 8, ("q", PROMPT + 1, 1))
    second.end("q", "length", 0, 33)


def test_a_life_in_two_engines() -> None:
    first, second = handed_on()
    answer(second)
    notes = {"q": ClientNote(-0.005, {"tokenize": 4 * MS}, 0.052, 0.059, {"client_stall": 2 * MS})}
    one = ledger_of(first, second, notes).request("q")
    assert one is not None
    assert {name: spent / MS for name, spent in one.wall_ns.items()} == {
        "tokenize": 4, "residual": 1, "queue_untried": 2 + 4, "prefill": 21, "engine_gap": 3 + 1, "transfer": 7 + 2,
        "decode": 4 + 8, "client_stall": 2, "deliver": 5,
    }  # fmt: skip
    assert (one.e2e_ns, one.finish, one.computed_tokens, one.recomputed_tokens) == (64 * MS, "length", PROMPT, 0)


def recorded() -> JoinedRecording:
    first, second = handed_on()
    answer(second)
    notes = {"q": ClientNote(-0.005, {"tokenize": 4 * MS}, 0.052, 0.059, {"client_stall": 2 * MS})}
    about = {"model": "none"}
    return JoinedRecording(
        {
            "prefill-0": Recording(first.account.table(), notes, about=about),
            "decode-0": Recording(second.account.table(), notes, about=about),
        }
    )


def test_rows_of_several_engines_sum_to_their_ledger() -> None:
    run = recorded()
    rows, (one,) = list(ledger_rows(run)), run.ledger.requests
    wall: dict[str, int] = {}
    for row in rows:
        if row.kind == "wall":
            wall[row.name] = wall.get(row.name, 0) + row.ns
    assert wall == one.wall_ns and wall["transfer"] == 9 * MS
    assert sum(row.ns for row in rows if row.kind == "cost") == sum(one.cost_ns.values())
    steps = [row for row in rows if row.kind == "step"]
    assert sum(row.ns for row in steps if row.name != IDLE) == run.ledger.step_ns
    assert {row.engine for row in steps} == {"prefill-0", "decode-0"}
    assert {row.engine for row in rows if row.kind != "step"} == {None}


def test_a_trace_of_several_engines_leads_a_request_from_one_to_the_next() -> None:
    run = recorded()
    trace = make_trace(run)
    assert trace["otherData"]["engines"] == ["prefill-0", "decode-0"] and trace["otherData"]["model"] == "none"
    events = trace["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {"engine prefill-0", "engine decode-0", "requests"} < set(names.values())
    arrows = [event["pid"] for event in events if event["ph"] in "stf"]
    assert arrows == [REQUESTS, ENGINE, ENGINE + NEXT, REQUESTS]
    steps = [(event["pid"], event["tid"]) for event in events if event["name"].startswith("step ")]
    assert [steps.count((ENGINE + after, STEPS)) for after in (0, NEXT)] == [3, 3]
    assert all(event["ts"] >= 0 for event in events if event["ph"] != "M")


def test_what_was_lost_on_the_way_is_computed_again() -> None:
    first, second = handed_on()
    second.at = 33
    second.step(1, 7, ("q", 0, PROMPT + 1))
    second.end("q", "length", 0, 33)
    one = ledger_of(first, second).request("q")
    assert one is not None
    assert (one.computed_tokens, one.recomputed_tokens) == (PROMPT, PROMPT)


def test_cancelled_while_handed_over() -> None:
    """No engine has an end of it: the caller's note does."""
    first, second = handed_on()
    note = ClientNote(0.0, {}, 0.031, 0.032)
    ledger = ledger_of(first, second, {"q": note})
    (one,) = ledger.requests
    assert (one.finish, one.e2e_ns, ledger.partial) == ("cancelled", 32 * MS, 0)
    assert one.wall_ns["transfer"] == 5 * MS and one.wall_ns["deliver"] == 1 * MS
    answer(second)  # the next engine had it already, and heard of it late
    assert ledger_of(first, second, {"q": note}).requests[0].wall_ns == one.wall_ns


def test_cancelled_in_the_second_engine_before_a_step() -> None:
    first, second = handed_on()
    second.step(30, 2, ("other", 0, 9))
    second.end("q", "cancelled", 0, 33, at=35)
    (one,) = ledger_of(first, second, {"q": ClientNote(0.0, {}, 0.035, 0.035)}).requests
    assert (one.finish, one.e2e_ns) == ("cancelled", 35 * MS)
    assert one.wall_ns["transfer"] == 7 * MS


def test_who_is_on_its_way_or_at_work_is_neither_told_nor_lost() -> None:
    first, second = handed_on()
    for notes in ({}, {"q": ClientNote(0.0, {})}):
        ledger = ledger_of(first, second, notes)
        assert (ledger.requests, ledger.partial) == ((), 0)


def test_whose_engine_died_is_left_out_and_counted_once() -> None:
    """The first attempt was handed on; the second engine died; the second attempt went both ways."""
    first, second = handed_on()
    first.step(1, 9, ("q~1", 0, PROMPT))
    first.end("q~1", HANDED_ON, 0, 60, first=True)
    second.at = 100
    second.step(1, 9, ("q~1", PROMPT, 1))
    second.end("q~1", "length", 0, 90)
    ledger = ledger_of(first, second, {"q": ClientNote(0.0, {}, 0.11, 0.12)})
    assert (ledger.requests, ledger.partial) == ((), 1)


def test_whose_first_engine_died_since_is_left_out_and_counted() -> None:
    first, second = Node(), Node()
    first.step(99, 1, ("other", 0, 9))
    answer(second)
    ledger = ledger_of(first, second, {"q": ClientNote(0.0, {}, 0.052, 0.059)})
    assert (ledger.requests, ledger.partial) == ((), 1)


def test_a_name_that_looks_like_an_attempt_is_a_name() -> None:
    first, second = Node(), Node()
    first.step(1, 9, ("mine~3", 0, PROMPT))
    first.end("mine~3", "stop", 0, 0, first=True)
    ledger = ledger_of(first, second, {"mine~3": ClientNote(0.0, {}, 0.01, 0.01)})
    assert [one.request_id for one in ledger.requests] == ["mine~3"] and ledger.partial == 0


def test_whose_beginning_was_forgotten_is_counted_once() -> None:
    first, second = Node(), Node()
    first.step(1, 9, ("q", 0, 12))
    first.account.table()
    first.account.reset()
    first.step(1, 9, ("q", 12, PROMPT - 12))
    first.end("q", HANDED_ON, 0, 0, first=True)
    answer(second)
    ledger = ledger_of(first, second)
    assert (ledger.requests, ledger.partial) == ((), 1)


times = st.integers(0, 30)
lives = st.tuples(
    st.lists(st.tuples(times, st.integers(1, 30)), min_size=1, max_size=3),  # gap and step, in the first engine
    st.lists(st.tuples(times, st.integers(1, 30)), min_size=1, max_size=4),  # and in the second
    times, times, times, times,  # asked before, way, restored, delivered after
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(several=st.lists(lives, min_size=1, max_size=4), behind=st.integers(-200, 200), cut=st.sampled_from((0, 1, 2)))
def test_every_nanosecond_once_on_every_way(several: Several, behind: int, cut: int) -> None:
    """Clocks apart, others beside it; every third is cancelled on its way."""
    first, second, notes, expected = Node(at=1000), Node(at=1000, behind=behind), {}, {}
    for number, (one, other, before, way, restore, after) in enumerate(several):
        name, arrival = f"r{number}", first.at
        for place, (gap, took) in enumerate(one):
            start = place * 6
            first.step(gap, took, (name, start, 6 if place < len(one) - 1 else PROMPT - start), ("beside", place, 1))
        first.end(name, HANDED_ON, arrival, arrival, first=True)
        handed, entered = first.at, first.at + way
        if number % 3 == cut:
            last = entered
        else:
            second.at = max(second.at, entered)
            for place, (gap, took) in enumerate(other):
                second.step(gap, took, (name, PROMPT + place, 1), restore=0 if place else min(restore, took))
            second.end(name, "length", arrival, entered)
            last = second.at - behind
        begun, ended = arrival - before, last + after
        notes[name] = ClientNote(begun / 1e3, {"parse": before * MS}, last / 1e3, ended / 1e3)
        expected[name] = (begun, handed, way, max(ended, handed), number % 3 == cut)
    ledger = ledger_of(first, second, notes)
    assert {one.request_id for one in ledger.requests} == set(expected) and not ledger.partial
    for one in ledger.requests:
        begun, handed, way, ended, is_cut = expected[one.request_id]
        assert one.e2e_ns == (ended - begun) * MS
        assert (one.finish == "cancelled") == is_cut or behind
        if not behind or is_cut:
            assert one.wall_ns.get("transfer", 0) >= way * MS
        if is_cut:
            assert one.wall_ns.get("transfer", 0) == way * MS
    if not behind:
        assert sum(sum(one.cost_ns.values()) for one in ledger.requests) <= ledger.step_ns


def test_two_tables_in_turn_are_the_sum() -> None:
    first, second = handed_on()
    answer(second)
    tables = {"a": first.account.table(), "b": second.account.table()}
    both = one_after_another(tables)
    assert len(both.step_times()) == 6
    assert (np.diff(both.step_times().ravel()) >= 0).all()
    assert both.finished == {"length": 1}
    assert both.transfer_ns == 2 * MS

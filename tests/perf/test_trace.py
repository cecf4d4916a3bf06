"""What is exported: a trace that Perfetto can draw, and rows whose sums are the ledger's."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.perf import ledger_rows as exported
from ridgeline.perf.account import Account
from ridgeline.perf.intervals import ClientNote
from ridgeline.perf.ledger_rows import check_path, ledger_rows, write_ledger
from ridgeline.perf.phases import TOLD
from ridgeline.perf.recording import Recording
from ridgeline.perf.trace import COUNTERS, ENGINE, FIRST_PHASE, REQUESTS, STEPS, make_trace, write_trace
from ridgeline.state.request import Request

from ..engine.scripted import run_to_end, scripted_engine


@pytest.fixture
def recording() -> Recording:
    account = Account()
    engine = scripted_engine(blocks=9, observer=account, step_tokens=24, sequences=3)
    for number, (prompt, output) in enumerate(((40, 30), (9, 40), (70, 5), (3, 50))):
        engine.add(Request(f"r{number}", tuple(range(prompt)), output, ignore_stop=True, arrival_s=0.0))
    engine.step()
    engine.cancel("r2")
    run_to_end(engine)
    notes = {"r0": ClientNote(-0.002, {"tokenize": 1_500_000})}
    return Recording(account.table(), notes, power=((0.004, 61.5), (0.008, 59.0)), about={"model": "scripted"})


def test_a_trace_is_json_that_perfetto_can_draw(recording: Recording, tmp_path: Path):
    write_trace(recording, tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"]["model"] == "scripted" and trace["otherData"]["share_rule"] == "share: v1"
    tracks = defaultdict(list)
    for event in trace["traceEvents"]:
        assert event["ph"] in "MXCstf" and isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] != "M":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0 and event["name"]
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():  # slices of a track never overlap
        ordered = sorted(slices)
        assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(ordered))
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert set(tracks) <= set(named)
    assert named[ENGINE, FIRST_PHASE + TOLD.index("decode")] == "decode"


def test_the_trace_holds_what_the_ledger_says(recording: Recording):
    events = make_trace(recording)["traceEvents"]
    requests = {one.request_id: one for one in recording.ledger.requests}
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        if event["ph"] == "X" and event["pid"] == REQUESTS:
            spent[event["args"]["request"], event["name"]] += event["dur"]
    for name, one in requests.items():
        for interval, ns in one.wall_ns.items():
            assert spent[name, interval] * 1e3 == pytest.approx(ns)
    assert requests["r0"].wall_ns["residual"] == 500_000  # the note names 1.5 of 2 ms
    assert any(one.preemptions for one in requests.values())
    steps = [event for event in events if event["ph"] == "X" and (event["pid"], event["tid"]) == (ENGINE, STEPS)]
    assert len(steps) == recording.ledger.steps
    arguments = [event["args"] for event in steps]
    total = sum(a["operators_ns"] + a["gaps_ns"] + a["host_ns"] for a in arguments)
    assert total == recording.ledger.step_ns


def test_arrows_lead_a_request_from_arrival_through_its_phases(recording: Recording):
    flows = defaultdict(list)
    for event in make_trace(recording)["traceEvents"]:
        if event["ph"] in "stf":
            flows[event["id"]].append(event)
    assert len(flows) == 3  # the fourth was cancelled before anything happened to it
    for events in flows.values():
        assert events[0]["ph"] == "s" and events[-1]["ph"] == "f" and all(e["ph"] == "t" for e in events[1:-1])
        assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
        assert all(e["pid"] == ENGINE and e["tid"] >= FIRST_PHASE for e in events[1:-1])


def test_counters_are_batch_tokens_blocks_and_power(recording: Recording):
    counters = defaultdict(list)
    for event in make_trace(recording)["traceEvents"]:
        if event["ph"] == "C":
            assert event["pid"] == COUNTERS
            counters[event["name"]].append(next(iter(event["args"].values())))
    assert set(counters) == {"batch", "tokens in the step", "KV blocks in use", "power"}
    assert 0 < max(counters["KV blocks in use"]) <= 9 and max(counters["batch"]) == 3
    assert max(counters["tokens in the step"]) == 24 and counters["power"] == [61.5, 59.0]


def test_rows_sum_to_the_ledger(recording: Recording):
    """Identity 3: what is exported and what is answered are sums of the same rows."""
    wall: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    cost: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    steps = idle = 0
    for row in ledger_rows(recording):
        if row.kind == "wall":
            wall[row.request][row.name] += row.ns
        elif row.kind == "cost":
            cost[row.request][row.phase] += row.ns
        elif row.name == "idle":
            idle += row.ns
        else:
            steps += row.ns
    for one in recording.ledger.requests:
        assert (wall[one.request_id], cost[one.request_id]) == (one.wall_ns, one.cost_ns)
    assert (steps, idle) == (recording.ledger.step_ns, recording.ledger.idle_ns)


def test_json_lines_say_first_what_run_they_are_of(recording: Recording, tmp_path: Path):
    write_ledger(recording, tmp_path / "ledger.jsonl")
    head, *rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert head["schema"] == "ridgeline.ledger/1" and head["about"] == {"model": "scripted"}
    assert head["run"]["step_ns"] == recording.ledger.step_ns and len(head["run"]["requests"]) == 4
    assert rows == [
        {name: value for name, value in msgspec.structs.asdict(row).items() if value is not None}
        for row in ledger_rows(recording)
    ]


def test_parquet_holds_the_same_rows(recording: Recording, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional")
    write_ledger(recording, tmp_path / "ledger.parquet")
    table = parquet.read_table(tmp_path / "ledger.parquet")
    assert table.to_pylist() == [msgspec.structs.asdict(row) for row in ledger_rows(recording)]
    assert table.schema.metadata[b"schema"] == b"ridgeline.ledger/1"


def test_what_cannot_be_written_is_refused_with_the_cure(recording: Recording, tmp_path: Path, monkeypatch):
    with pytest.raises(UserError, match=r"ledger\.txt ends with none of \.jsonl, \.parquet"):
        check_path(Path("ledger.txt"))
    monkeypatch.setattr(exported.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ridgeline\[parquet\]'"):
        check_path(Path("ledger.parquet"))
    with pytest.raises(UserError, match="cannot write"):
        write_trace(recording, tmp_path / "nowhere" / "trace.json")


def test_a_run_of_nothing_exports_nothing(tmp_path: Path):
    empty = Recording(Account().table(), {})
    assert not [event for event in make_trace(empty)["traceEvents"] if event["ph"] != "M"]
    assert list(ledger_rows(empty)) == []

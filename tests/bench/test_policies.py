"""What the policies are for, on the virtual clock (B11, B12, B13): the cells of bench/policies.py, smaller."""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    found = importlib.import_module("policies")
    monkeypatch.delitem(sys.modules, "policies")
    return found


def test_the_high_class_keeps_its_first_token_at_ten_times_overload(bench: ModuleType) -> None:
    alone, fcfs, priority, aged = bench.cell_priority(60, seed=1)
    for row in (priority, aged):
        # Its step is shared with low ones, and the step in flight is full: at most a few full steps more.
        assert row["high ttft p99"] < 4 * alone["high ttft p99"]
        assert row["high ttft p99"] < fcfs["high ttft p99"] / 20
        assert row["unfinished"] == 0  # no low request starves
    assert priority["low worst e2e"] < 1.1 * fcfs["low worst e2e"]


def test_more_requests_are_in_time_than_first_come_at_every_load(bench: ModuleType) -> None:
    rows = bench.cell_deadline(60, seed=2, loads=(0.5, 1.5, 6.0))
    for row in rows:
        for name in ("none", "prompt", "oracle"):
            assert row[name] >= row["fcfs"]
    assert rows[0]["fcfs"] == 1.0 and rows[-1]["oracle"] > rows[-1]["fcfs"] + 0.1


def test_knowing_the_length_beats_guessing_beats_neither(bench: ModuleType) -> None:
    """A burst, where shortest first is known to be best. 3 %: it is the best order for one place, and there are 16."""
    draw = random.Random(4)
    asks = [bench.chat(draw, is_related=True) for _ in range(250)]
    none, prompt, oracle = (
        bench.mean([one.e2e_s for one in bench.drive(f"shortest:predict={name}", bench.poisson(asks, 50, draw))])
        for name in ("none", "prompt", "oracle")
    )
    assert oracle <= 1.03 * prompt and prompt < 0.9 * none and oracle < 0.8 * none


def test_tenants_that_always_wait_get_their_shares(bench: ModuleType) -> None:
    for row in bench.cell_shares(120, seed=1):
        weight = float(row["weights"].partition("=")[2])
        assert row["tokens a / b"] == pytest.approx(weight, rel=0.15)
        assert row["worst differ."] <= row["bound"]


def test_a_modest_tenant_hardly_notices_a_greedy_one(bench: ModuleType) -> None:
    alone, fcfs, fair = bench.cell_fair(300, seed=1)
    assert fair["share of ask"] > 0.8 * alone["share of ask"] > fcfs["share of ask"]
    assert fair["ttft p90"] < 2.0


def test_infinity_is_no_json(bench: ModuleType) -> None:
    assert json.dumps(bench.finite({"a": [math.inf, 1.0]})) == '{"a": [null, 1.0]}'

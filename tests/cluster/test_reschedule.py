"""Who is moved where: only what pays, only what fits, nothing twice, nothing when all are alike."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.cluster.reschedule import (
    UNKNOWN,
    Move,
    MoveCost,
    Rescheduler,
    Resident,
    Rules,
    Site,
    StepLine,
    remaining_of,
)

STEP = StepLine(0.006, 0.0008, 2e-6)
CHEAP = MoveCost(23_040, 1.5e9)

residents = st.builds(
    Resident, st.uuids().map(str), st.integers(1, 3000),
    st.one_of(st.just(UNKNOWN), st.floats(1, 2000)), st.integers(0, 200), st.booleans(),
)  # fmt: skip
sites = st.builds(Site, st.lists(residents, max_size=8).map(tuple), st.integers(1000, 40_000))
clusters = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), sites, max_size=4)
rules = st.builds(
    Rules, tolerance=st.floats(0, 0.5), least_remaining=st.floats(1, 100), least_gain=st.floats(0, 0.5),
    rest=st.integers(0, 100), most_moves=st.integers(0, 5),
)  # fmt: skip


def peak(site: Site, horizon: int, points: int) -> float:
    times = [horizon * i / (points - 1) for i in range(points)]
    return max(sum(one.tokens + t for one in site.residents if t < one.remaining) for t in times)


def after(cluster: dict[str, Site], moves: list[Move]) -> dict[str, Site]:
    lists = {name: {one.name: one for one in site.residents} for name, site in cluster.items()}
    for move in moves:
        lists[move.target][move.name] = lists[move.source].pop(move.name)
    return {name: Site(tuple(lists[name].values()), site.capacity) for name, site in cluster.items()}


def imbalance(rescheduler: Rescheduler, cluster: dict[str, Site]) -> float:
    traces = {name: {one.name: rescheduler._trace(one) for one in site.residents} for name, site in cluster.items()}
    return rescheduler._imbalance([rescheduler._sum(one)[0] for one in traces.values()])


@given(clusters, rules, st.floats(1e3, 1e10), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_whatever_is_moved_pays_fits_and_is_moved_once(
    cluster: dict[str, Site], rules: Rules, rate: float, fixed_s: float
) -> None:
    rescheduler = Rescheduler(STEP, MoveCost(23_040, rate, fixed_s), rules)
    moves = rescheduler.decide(cluster)
    assert len(moves) <= rules.most_moves
    assert len({move.name for move in moves}) == len(moves)
    where = {one.name: (name, one) for name, site in cluster.items() for one in site.residents}
    for move in moves:
        home, one = where[move.name]
        assert home == move.source != move.target
        assert move.payback_s > move.cost_s >= one.tokens * 23_040 / rate
        assert not one.stays and one.remaining >= rules.least_remaining and one.fresh >= rules.rest
    later = after(cluster, moves)
    assert sorted(one.name for site in later.values() for one in site.residents) == sorted(where)
    for target in {move.target for move in moves}:
        assert peak(later[target], rules.horizon, rules.points) <= cluster[target].capacity
    if moves:
        assert imbalance(rescheduler, later) < imbalance(rescheduler, cluster)
        assert imbalance(rescheduler, cluster) - imbalance(rescheduler, later) == pytest.approx(
            sum(move.gain for move in moves)
        )


@given(st.integers(1, 12), st.integers(2, 5), st.integers(1, 2000), st.floats(1, 1000))
def test_engines_that_are_alike_keep_what_they_have(count: int, engines: int, tokens: int, remaining: float) -> None:
    cluster = {
        str(engine): Site(tuple(Resident(f"{engine}-{n}", tokens, remaining) for n in range(count)), 1 << 30)
        for engine in range(engines)
    }
    assert Rescheduler(STEP, CHEAP).decide(cluster) == []


def crowded(remaining: float, count: int = 6) -> dict[str, Site]:
    many = tuple(Resident(f"r{number}", 300, remaining) for number in range(count))
    return {"full": Site(many, 10_000), "empty": Site((), 10_000)}


def test_it_fills_an_empty_engine_and_then_rests() -> None:
    rescheduler = Rescheduler(STEP, CHEAP, Rules(most_moves=10))
    cluster = crowded(400)
    moves = rescheduler.decide(cluster)
    assert [len(site.residents) for site in after(cluster, moves).values()] == [3, 3]
    assert rescheduler.decide(after(cluster, moves)) == [] and rescheduler.looks == 2 and rescheduler.moves == 3


def test_who_soon_ends_stays_and_whoever_costs_more_than_it_wins() -> None:
    assert Rescheduler(STEP, CHEAP).decide(crowded(10)) == []
    assert Rescheduler(STEP, MoveCost(23_040, 1e6)).decide(crowded(100)) == []  # 7 s of link
    assert Rescheduler(STEP, MoveCost(23_040, 1.5e9, 10.0)).decide(crowded(400)) == []
    assert len(Rescheduler(STEP, CHEAP).decide(crowded(400))) == 2


def test_predicted_ends_are_seen_before_they_come() -> None:
    """Three long ones here, five there that are about to end: to a count of today the second engine is the fuller."""
    ending = Site(tuple(Resident(f"e{n}", 200, 30) for n in range(5)), 10_000)
    going_on = Site(tuple(Resident(f"l{n}", 200, 500) for n in range(3)), 10_000)
    blind = {
        "a": Site(tuple(Resident(one.name, one.tokens) for one in ending.residents), 10_000),
        "b": Site(tuple(Resident(one.name, one.tokens) for one in going_on.residents), 10_000),
    }
    assert [(move.source, move.target) for move in Rescheduler(STEP, CHEAP).decide({"a": ending, "b": going_on})] == [
        ("b", "a")
    ]
    assert all(move.source == "a" for move in Rescheduler(STEP, CHEAP).decide(blind))


def test_it_looks_every_so_many_steps() -> None:
    rescheduler = Rescheduler(STEP, CHEAP, Rules(every=4))
    assert [rescheduler.is_due(2) for _ in range(16)] == [False] * 7 + [True] + [False] * 7 + [True]


def test_what_is_still_to_come() -> None:
    assert remaining_of("oracle", 10, 100, 0.0, is_exact=True) == 90
    assert remaining_of("oracle", 10, 100, 50.0) == UNKNOWN
    assert remaining_of("predict", 10, 100, 50.0) == 40
    assert remaining_of("predict", 60, 100, 50.0) == 1 and remaining_of("predict", 60, 100, 500.0) == 40
    assert math.isinf(remaining_of("predict", 60, 100, 0.0)) and math.isinf(remaining_of("load", 60, 100, 70.0))

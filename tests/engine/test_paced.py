"""A chunk chosen from the estimate keeps every gap on the virtual clock; ways chosen from it are as good
as the best fixed one in either half of a load that changes. No token changes by either."""

from __future__ import annotations

from ridgeline.engine.build import rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.replay import rehearse_replay
from ridgeline.perf.workload import Job
from ridgeline.run.costs import StepCosts
from ridgeline.schedule.choose import Chooser, Goals, Way
from ridgeline.schedule.pace import Curves, Pace
from ridgeline.state.request import Request

from ..perf.conftest import round_machine
from .tiny import LLAMA, TinyEngine, write_config

MODEL = "random:smollm2-135m"  # descriptors only: nothing is loaded
MACHINE = round_machine(1e10, 1e12)
JOBS = [Job(tuple(range(n, n + prompt)), 12, 0.2 * n) for n, prompt in enumerate((40, 900, 17, 600, 300, 900))]


def longest_gap(place: str) -> float:
    clock = VirtualClock()
    config = EngineConfig(MODEL, threads=2, context=1024, kv_bytes=1 << 28, place=place)
    found = rehearse_replay(rehearse(config, MACHINE, clock), clock, JOBS)
    assert found.summary.failed == 0
    return max(gap for request in found.requests for gap in request.gaps_s)


def test_every_gap_keeps_the_target_where_the_estimate_is_right() -> None:
    longest = longest_gap("chunked")
    for target in (0.05, 0.08):
        assert longest > target >= longest_gap(f"chunked:tbt={target}s") > target / 2


GAP_S, FIRST_S = 0.035, 1.5
HALVES = (
    # a few answers and a long prompt now and then: steps are cut
    [Job(tuple(range(50 * n, 50 * n + 40)), 90, 0.05 * n) for n in range(4)]
    + [Job(tuple(range(5000 + 800 * n, 5700 + 800 * n)), 4, 0.5 + 0.9 * n) for n in range(3)],
    # so many answers that no cut would keep their goal: cutting would only make first tokens late
    [Job(tuple(range(9000 + 40 * n, 9020 + 40 * n)), 60, 10.0) for n in range(48)]
    + [Job(tuple(range(15000 + 800 * n, 15700 + 800 * n)), 4, 10.8 + 0.25 * n) for n in range(8)],
)


def kept_goals(place: str) -> tuple[list[int], Engine]:
    """Of each half: goals kept, of gaps and of first tokens."""
    clock = VirtualClock()
    config = EngineConfig(MODEL, threads=2, context=1024, kv_bytes=1 << 28, prefix=False, place=place)
    engine = rehearse(config, MACHINE, clock)
    found = rehearse_replay(engine, clock, [*HALVES[0], *HALVES[1]]).requests
    cut = len(HALVES[0])
    return [
        sum((one.ttft_s or 9.0) <= FIRST_S for one in half) + sum(max(one.gaps_s) <= GAP_S for one in half)
        for half in (found[:cut], found[cut:])
    ], engine


def test_the_choice_is_as_good_as_the_best_in_each_half() -> None:
    fixed = [kept_goals(place)[0] for place in ("serial", "chunked", f"chunked:tbt={GAP_S}s")]
    best = [max(column) for column in zip(*fixed, strict=True)]
    assert fixed[2][0] > max(fixed[0][0], fixed[1][0])
    chosen, engine = kept_goals(f"auto:tbt={GAP_S}s,ttft={FIRST_S}s")
    assert all(ours >= 0.9 * other for ours, other in zip(chosen, best, strict=True))
    assert engine.chooser is not None
    told = engine.chooser.report()
    assert told["switches"] == len(told["log"]) > 0 and told["now"] != told["log"][0]["before"]
    one = told["log"][0]
    assert one["at_s"] >= 10 and "owed a token" in one["why"] and "misses" in one["why"]
    assert "first tokens were later than the goal" in one["outcome"]


def test_switching_changes_no_token(tmp_path) -> None:
    """Goals that nobody keeps: the way that is done first by the estimate wins, again and again."""
    model = write_config(tmp_path, LLAMA | {"tie_word_embeddings": False})
    requests = [
        Request(f"r{n}", tuple((7 * i + n) % 300 + 3 for i in range(n)), 30, ignore_stop=True) for n in (5, 90, 40, 200)
    ]
    plain, switched = TinyEngine(model), TinyEngine(model)
    expected = plain.run(requests, (0, 4, 9, 15))
    costs = StepCosts({"model": record(describe(model), STORAGES.get("bf16"))}, lambda: MACHINE)
    scheduler, curves = switched.engine.scheduler, Curves(costs, 512)
    config = EngineConfig(model)
    ways = Way("cut", config.schedule(), Pace(curves, 1e-9)), Way("serial", config.schedule(mixes=False))
    chooser = switched.engine.chooser = Chooser(scheduler, curves, ways, Goals(1e-9, 1e-9))
    assert switched.run(requests, (0, 4, 9, 15)) == expected
    assert chooser.switches and chooser.way.name == "serial"
    for one in (plain, switched):
        one.engine.close()


def test_no_token_changes(tmp_path) -> None:
    model = write_config(tmp_path, LLAMA | {"tie_word_embeddings": False})
    requests = [
        Request(f"r{n}", tuple((7 * i + n) % 300 + 3 for i in range(n)), 9, ignore_stop=True) for n in (5, 90, 40, 200)
    ]
    plain = TinyEngine(model)
    expected = plain.run(requests, (0, 2, 3, 5))
    paced = TinyEngine(model)
    program = record(describe(model), STORAGES.get("bf16"))
    paced.engine.scheduler.pace = Pace(Curves(StepCosts({"model": program}, lambda: MACHINE), 512), 1e-4)
    assert paced.run(requests, (0, 2, 3, 5)) == expected
    assert paced.engine.scheduler.pace.ratio != 1.0  # real steps took other times than estimated
    for one in (plain, paced):
        one.engine.close()

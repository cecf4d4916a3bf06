"""A chunk chosen from the estimate: on the virtual clock every gap keeps the target, and no token changes."""

from __future__ import annotations

from ridgeline.engine.build import rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.replay import rehearse_replay
from ridgeline.perf.workload import Job
from ridgeline.run.costs import StepCosts
from ridgeline.schedule.pace import Pace
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


def test_no_token_changes(tmp_path) -> None:
    model = write_config(tmp_path, LLAMA | {"tie_word_embeddings": False})
    requests = [
        Request(f"r{n}", tuple((7 * i + n) % 300 + 3 for i in range(n)), 9, ignore_stop=True) for n in (5, 90, 40, 200)
    ]
    plain = TinyEngine(model)
    expected = plain.run(requests, (0, 2, 3, 5))
    paced = TinyEngine(model)
    program = record(describe(model), STORAGES.get("bf16"))
    paced.engine.scheduler.pace = Pace(StepCosts({"model": program}, lambda: MACHINE), 1e-4, 512)
    assert paced.run(requests, (0, 2, 3, 5)) == expected
    assert paced.engine.scheduler.pace.ratio != 1.0  # real steps took other times than estimated
    for one in (plain, paced):
        one.engine.close()

"""Every place is rehearsed on a workload; the best one is named with its reason, and what cannot be had says why."""

from __future__ import annotations

import json

import msgspec
import pytest

from ridgeline.advise.placement import choose_placement, placement_lines
from ridgeline.cluster.build import connect
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.llm import LLM
from ridgeline.perf.workload import Job
from ridgeline.run.machine import Machine, fingerprint, store
from tests.engine.tiny import LLAMA, write_config
from tests.perf.conftest import round_machine

MODEL = "random:smollm2-135m"  # descriptors only: nothing is loaded


def machine_of(threads: int) -> Machine:
    """One thread has half of everything."""
    return round_machine(2e10 * threads, 1.5e11 * threads)


def jobs(answers: int, tokens: int, prompts: int, length: int, every_s: float) -> list[Job]:
    short = [Job(tuple(range(50 * n, 50 * n + 10)), tokens, every_s * n) for n in range(answers)]
    long = [Job(tuple(range(9000 + 900 * n, 9000 + 900 * n + length)), 2, 0.2 + every_s * n) for n in range(prompts)]
    return short + long


def config(place: str, **options: object) -> EngineConfig:
    return EngineConfig(MODEL, **({"threads": 2, "context": 1024, "kv_bytes": 1 << 28, "place": place} | options))


def test_the_place_follows_the_workload() -> None:
    even = choose_placement(config("auto:tbt=14ms,ttft=2s"), jobs(2, 40, 2, 300, 1.4), machine_of)
    assert even.place.partition(":")[0] in ("split", "auto", "disaggregated")
    early = choose_placement(config("auto:tbt=500ms,ttft=700ms"), jobs(2, 40, 2, 500, 1.4), machine_of)
    assert early.place in ("serial", "chunked")
    kept = {one.place.partition(":")[0]: one.kept for one in early.forecasts}
    assert kept["disaggregated"] < kept["chunked"] == max(kept.values())
    assert early.goals.gap_s == 0.5 and early.requests == 4
    head, *lines = placement_lines(early)
    assert early.place in head and "requests within 500 ms a token" in head and len(lines) == 7


@pytest.mark.torch
def test_what_cannot_be_had_is_refused_in_its_line() -> None:
    found = choose_placement(config("auto", body="torch"), jobs(2, 8, 1, 64, 0.1), machine_of)
    refused = {one.place.partition(":")[0]: one.refused for one in found.forecasts if one.refused}
    assert set(refused) == {"split", "corun"} and "native bodies" in refused["split"]
    assert any("native bodies" in line for line in placement_lines(found))


def test_what_no_place_can_run_is_refused() -> None:
    with pytest.raises(CapacityError, match="no place can run"):
        choose_placement(config("auto", context=64), jobs(1, 8, 1, 640, 0.1), machine_of)


def test_an_engine_is_never_started_without_the_choice() -> None:
    with pytest.raises(UserError, match="LLM"):
        connect(config("auto:workload=W3"))


def test_llm_starts_the_best_and_says_why(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIDGELINE_HOME", str(tmp_path / "home"))
    for threads in (1, 2):  # so that nothing is measured
        store(msgspec.structs.replace(machine_of(threads), threads=threads, fingerprint=fingerprint()))
    model = write_config(tmp_path, LLAMA)
    lines = [{"prompt_ids": list(range(10, 40)), "output_tokens": 4, "arrival_s": 0.001 * n} for n in range(3)]
    workload = tmp_path / "asked.jsonl"
    workload.write_text("\n".join(map(json.dumps, lines)))
    with LLM(model, threads=2, kv_bytes=8 << 20, place=f"auto:workload={workload}") as llm:
        assert llm.placement is not None and llm.config.place == llm.placement.place
        assert llm.placement.requests == 3 and any("estimated" in note for note in llm.notes)
        llm.generate([[5, 6, 7]], max_tokens=3)
        start = llm.account().choices["start"]
        assert start["why"] == llm.placement.why and len(start["forecasts"]) == 7
        assert llm.why().choices["start"] == start

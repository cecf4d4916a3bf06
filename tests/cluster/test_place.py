"""Places are data: what is written becomes a Place, everything else is refused in a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ridgeline.cluster.build import configs_of, connect, everywhere, shares, threads_of
from ridgeline.cluster.router import ROUTERS, LeastRouter, RoundRouter
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import PLACES, ROUTES, Place, make_place
from ridgeline.kit.errors import UserError

from ..engine.tiny import LLAMA, MAMBA2, TinyEngine, write_config


def test_what_is_written() -> None:
    assert make_place("chunked") == Place("chunked")
    assert not make_place("serial").mixes
    assert (make_place("chunked:tbt=50ms").tbt, make_place("chunked:tbt=0.1s").tbt) == (0.05, 0.1)
    assert make_place("corun") == Place("corun", takes_turns=True) and make_place("corun").mixes
    assert make_place("disaggregated").engines == (1, 1)
    place = make_place("disaggregated:engines=2+3,threads=1+4,link=tcp,rate=1.5M,buffer=64M,route=round,restarts=0")
    assert place == Place("disaggregated", True, False, (2, 3), (1, 4), "tcp", 1.5 * 2**20, 64 << 20, "round", 0)
    assert set(ROUTERS) == set(ROUTES)
    far = make_place("disaggregated:launcher=ray,address=10.0.0.1:6379")
    assert (far.launcher, far.address, far.link) == ("ray", "10.0.0.1:6379", "tcp")
    assert make_place("disaggregated:launcher=ray").address == "auto"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("apart", "known: serial, chunked, auto, split, corun, disaggregated"),
        ("serial:link=tcp", "no option link"),
        ("chunked:tbt=50", "write a time"),
        ("chunked:tbt=0ms", "write a time"),
        ("chunked:tbt=nans", "write a time"),
        ("serial:tbt=5ms", "no option tbt"),
        ("disaggregated:engines=2", "two counts"),
        ("disaggregated:engines=0+1", "two counts"),
        ("disaggregated:link=carrier-pigeon", "known: shm, tcp"),
        ("disaggregated:rate=-1", "write a size"),
        ("disaggregated:rate=nan", "write a size"),
        ("disaggregated:rate=5", "at least 1000"),
        ("disaggregated:buffer=0", "write a size"),
        ("disaggregated:restarts=-1", "whole number"),
        ("disaggregated:link=shm,link=tcp", "twice"),
        ("disaggregated:launcher=slurm", "known: processes, ray"),
        ("disaggregated:address=10.0.0.1:6379", "write launcher=ray"),
        ("disaggregated:launcher=ray,link=shm", "write link=tcp"),
        ("disaggregated:launcher=ray,address=ray://10.0.0.1:10001", "write HOST:PORT"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        EngineConfig(model="x", place=text).check()


@pytest.mark.parametrize(
    "options", [{"keep": "window:64"}, {"prefix": False}, {"cache": False}, {"batching": "static"}, {"paging": False}]
)
def test_what_does_not_go_with_it(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="disaggregated"):
        EngineConfig(model="x", place="disaggregated", **options).check()  # type: ignore[arg-type]


def test_a_recurrent_state_cannot_be_handed_on(tmp_path) -> None:
    with pytest.raises(UserError, match="Leave place out"):
        TinyEngine(write_config(tmp_path, MAMBA2), place="disaggregated")


def test_who_gets_what(tmp_path) -> None:
    config = EngineConfig(model=write_config(tmp_path, LLAMA), threads=6, spec="ngram:k=4", place="disaggregated")
    place = make_place("disaggregated:engines=1+2")
    parts = configs_of(config, place)
    assert [(one.threads, one.spec) for one in parts.values()] == [(2, None), (2, "ngram:k=4")]
    assert len({one.kv_bytes for one in parts.values()}) == 1
    assert threads_of(EngineConfig(model="x"), make_place("disaggregated:threads=3+1")) == (3, 1)
    with pytest.raises(UserError, match="twice"):
        threads_of(config, make_place("disaggregated:threads=3+1"))
    assert "1 prefill" in shares(config) and shares(EngineConfig(model="x")) == ""


def test_without_ray_one_is_told_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = EngineConfig(model=write_config(tmp_path, LLAMA), place="disaggregated:launcher=ray")
    with pytest.raises(UserError, match=r"pip install 'ridgeline\[ray\]', on every machine"):
        connect(config)
    assert "the Ray cluster at auto" in shares(config)


def test_a_model_is_found_wherever_a_process_stands(tmp_path, monkeypatch) -> None:
    name = write_config(tmp_path, LLAMA)
    monkeypatch.chdir(tmp_path)
    prefix, _, path = name.rpartition(":")
    relative = f"{prefix}:{Path(path).name}" if prefix else Path(path).name
    assert everywhere(relative) == name and everywhere("smollm2-135m") == "smollm2-135m"


def test_routers() -> None:
    assert LeastRouter().choose({"a": 3, "b": 1, "c": 1}) == "b"
    turns = RoundRouter()
    assert [turns.choose({"a": 9, "b": 0}) for _ in range(3)] == ["a", "b", "a"]


@pytest.mark.parametrize("place", [name for name, (place, _) in PLACES.items() if not place.is_apart])
def test_one_engine_makes_the_same_tokens_in_any_place(tmp_path, place: str) -> None:
    from .test_exchange import alone, requests

    model = write_config(tmp_path, LLAMA | {"tie_word_embeddings": False})
    asked = requests((5, 40, 90, 17))
    assert alone(model, asked, place=place, step_tokens=64) == alone(model, asked)

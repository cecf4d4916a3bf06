"""Several models behind one port: each has its own engine, queue, health, metrics; `model` chooses."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import pytest

from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.llm import LLM
from ridgeline.serve.door import Door
from ridgeline.serve.keys import Keys
from ridgeline.serve.lineup import MOST, Lineup
from ridgeline.serve.live_page import LiveEngine
from ridgeline.serve.scripted import Script, ScriptedEngine
from ridgeline.serve.served import Limits, Served

from .live import KEY, Live, live
from .test_life import send, until

FAST = Script(0.005, 0.001)


@pytest.fixture(scope="module")
def robot(tiny: str) -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine.of(tiny, FAST)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def two(llm: LLM, robot: ScriptedEngine) -> Iterator[Live]:
    """A real engine called tiny, which is meant where none is named, and a script called robot."""
    with live(llm, keys=(KEY,), others={"robot": robot}, limits=Limits(stalled_s=60.0)) as running:
        yield running


def test_the_model_of_a_request_chooses(two: Live, llm: LLM) -> None:
    assert [card["id"] for card in two("GET", "/v1/models").json["data"]] == ["tiny", "robot"]
    assert two("GET", "/v1/models/robot").json["id"] == "robot"
    answers = {name: two.chat(model=name, max_tokens=12).json for name in ("tiny", "robot")}
    assert all(answer["model"] == name for name, answer in answers.items())
    texts = {name: answer["choices"][0]["message"]["content"] for name, answer in answers.items()}
    told = llm.chat([{"role": "user", "content": "hi"}], max_tokens=12, temperature=0.0, ignore_stop=True)
    assert texts["tiny"] == told.text != texts["robot"]
    for path, more in (("completions", {"prompt": "hi"}), ("responses", {"input": "hi"})):
        reply = two("POST", f"/v1/{path}", {"model": "robot", "max_tokens" if path != "responses" else
                    "max_output_tokens": 4, **more})  # fmt: skip
        assert reply.status == 200 and reply.json["model"] == "robot"
    streamed = two.chat(model="robot", stream=True).events
    assert {event["model"] for event in streamed[:-1]} == {"robot"}


def test_who_is_not_here_is_told_who_is(two: Live, server: Live) -> None:
    for reply in (two.chat(model="other"), two("GET", "/v1/models/other"), two("GET", "/props?model=other")):
        error = reply.json["error"]
        assert reply.status == 404 and error["code"] == "model_not_found" and error["param"] == "model"
        assert "'tiny' and 'robot' are." in error["message"]
    assert "; 'tiny' is." in server.chat(model="other").json["error"]["message"]
    assert two("GET", "/props?model=tiny&model=robot").code == "invalid_value"


def test_every_route_knows_whose_it_is(two: Live) -> None:
    named = {"tiny": two("GET", "/props?model=tiny").json, "robot": two("GET", "/props?model=robot").json}
    assert [named[name]["engine"]["body"] for name in named] == ["cpp", "script"]
    assert two("GET", "/props").json == named["tiny"]  # the first, where none is named
    assert two("GET", "/live?model=robot").json["model"] == "robot"
    assert two("GET", "/live").json["models"] == ["tiny", "robot"]
    assert two("GET", "/why").status == 200 and two("GET", "/why?model=robot").status == 400  # a script has no verdict
    assert two("POST", "/tokenize", {"model": "robot", "prompt": "hi"}).json["count"] == 2
    assert two("POST", "/tokenize", {"model": "other", "prompt": "hi"}).status == 404
    document = two("GET", "/openapi.json").json
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"] == {"enum": ["tiny", "robot"]}
    (parameter,) = document["paths"]["/why"]["get"]["parameters"]
    assert parameter["in"] == "query" and parameter["schema"] == {"enum": ["tiny", "robot"]}
    assert msgspec.convert(two("GET", "/live?model=robot").json, LiveEngine).models == ["tiny", "robot"]


def test_metrics_say_whose_they_are(two: Live) -> None:
    two.chat(model="robot", max_tokens=3)
    two.chat(model="robot", n=99)
    two.chat(model="o" * 300)
    text = two("GET", "/metrics").body.decode()
    names = set(re.findall(r'model_name="([^"]*)"', text))
    assert names == {"tiny", "robot"}  # never what a request says
    said = {name: float(value) for name, value in re.findall(
        r'ridgeline_generation_tokens_total{model_name="(\w+)"} (\S+)', text)}  # fmt: skip
    assert said["robot"] >= 3 and set(said) == {"tiny", "robot"}
    assert text.count("# TYPE ridgeline_generation_tokens_total counter") == 1
    assert 'ridgeline_rejected_total{code="invalid_value",model_name="robot"}' in text
    assert 'ridgeline_rejected_total{code="model_not_found"}' in text


def test_one_engine_down_makes_the_port_red_and_is_named(two: Live, robot: ScriptedEngine) -> None:
    until(lambda: two("GET", "/health/ready").json["status"] == "ok")
    robot.failure = RidgelineError("gone")
    try:
        for path in ("/health", "/health/ready"):
            reply = two("GET", path)
            assert reply.status == 503 and reply.json["status"] == "engine_down" and reply.headers["retry-after"]
            assert reply.json["models"] == {"tiny": "ok", "robot": "engine_down"}
            assert "models" not in two("GET", path, headers={"Authorization": ""}).json  # one word for strangers
        assert two("GET", "/health/live").status == 200  # the other's answers should not end
        assert two.chat(model="robot").code == "engine_down" and two.chat().status == 200
        detail = two("GET", "/health?detail=1").json["engines"]
        assert set(detail) == {"tiny", "robot"} and detail["tiny"]["heartbeat_age_s"] < 60
    finally:
        robot.failure = None
    assert two("GET", "/health").json == {"status": "ok", "models": {"tiny": "ok", "robot": "ok"}}


def test_queues_and_drains_are_of_each_and_of_all(llm: LLM, tiny: str) -> None:
    slow = ScriptedEngine.of(tiny, Script(0.3, 0.001, slots=1))
    with live(llm, others={"slow": slow}, limits=Limits(queue_requests=1)) as both:
        connection = send((both.host, both.port), {"model": "slow", "prompt": "hi", "max_tokens": 200})
        until(lambda: bool(both.server.door.lineup.models["slow"].jobs))
        assert both.complete(model="slow").code == "queue_full" and both.complete().status == 200
        both.server.drain()
        with connection:
            assert b"200 OK" in connection.recv(1 << 16)  # what the second engine had accepted is finished too
    slow.close()


def test_names_that_cannot_stand_side_by_side(llm: LLM) -> None:
    one = Served("a", llm)
    with pytest.raises(UserError, match="NAME=MODEL"):
        Door([one, one], Keys())
    with pytest.raises(UserError, match="1 to 16"):
        Lineup([one] * (MOST + 1))
    one.close()

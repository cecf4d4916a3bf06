"""bench URL against a scripted engine: what it measures is what the script says, and waiting is never left out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ridgeline.cli.main import app
from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.perf.arrivals import Ask, Lengths, in_turn, poisson, read_trace
from ridgeline.perf.http_load import Aim, HttpLoad
from ridgeline.report.load_plot import load_plot
from ridgeline.serve.scripted import Script, ScriptedEngine
from ridgeline.serve.served import Limits

from .live import Live, live

FIRST_S, NEXT_S = 0.05, 0.004
SHORT = Lengths(8, 6)


@pytest.fixture(scope="module")
def scripted(llm: LLM) -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine(llm.tokenizer, llm.chat_template, llm.facts, Script(FIRST_S, NEXT_S, slots=2))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(scripted: ScriptedEngine) -> Iterator[Live]:
    with live(scripted) as running:
        yield running


def test_an_open_loop_counts_the_wait_from_intended_arrival(server: Live) -> None:
    asks = [Ask(f"{number} hi", 6, 0.0) for number in range(6)]  # two at a time: the last pair waits for two others
    run = HttpLoad(Aim(server.url)).run(asks)
    assert run.summary.failed == 0 and run.summary.output_tokens == 36 and run.summary.prompt_tokens > 0
    ttft = sorted(one.ttft_s for one in run.requests)
    service_s = FIRST_S + 5 * NEXT_S
    assert all(ttft[at] >= at // 2 * service_s + FIRST_S - 0.001 for at in range(6))
    assert all(one.tpot_s >= 0 and len(one.gaps_s) == 5 for one in run.requests)


def test_clients_in_turn_and_chat(server: Live) -> None:
    ended: list[int] = []
    run = HttpLoad(Aim(server.url + "/v1", is_chat=True), ended.append).run(in_turn(6, SHORT), clients=2)
    assert sum(ended) == len(run.requests) == 6 and run.summary.failed == 0
    assert all(one.ttft_s >= FIRST_S - 0.001 and one.output_tokens == 6 for one in run.requests)
    assert len({one.arrival_s for one in run.requests}) >= 3


def test_refusals_are_counted_by_their_code(scripted: ScriptedEngine) -> None:
    with live(scripted, limits=Limits(queue_requests=1), keys=("sk-x",)) as small:
        run = HttpLoad(Aim(small.url, key="sk-x")).run([Ask("hi", 40, 0.0) for _ in range(4)])
        assert {one.error for one in run.requests} == {None, "HTTP 429 queue_full"}
        assert all(one.refused_s is not None for one in run.requests if one.error)
        wrong = HttpLoad(Aim(small.url, model="tiny", key="sk-y")).run([Ask("hi", 4, 0.0)])
        assert wrong.requests[0].error == "HTTP 401 invalid_api_key"
    with pytest.raises(UserError, match="nobody answers"):
        HttpLoad(Aim("http://127.0.0.1:1")).run([Ask("hi", 4)])
    for wrong_url in ("http://", "ftp://x", "http://x:y"):
        with pytest.raises(UserError, match="no address"):
            HttpLoad(Aim(wrong_url))


@pytest.mark.parametrize("cv", [0.0, 1.0, 3.0])
def test_arrivals_have_the_rate_and_the_spread_asked_for(cv: float) -> None:
    times = np.array([ask.arrival_s for ask in poisson(5.0, 5_000, Lengths(1, 1), seed=3, cv=cv)])
    gaps = np.diff(times)
    assert times[0] == 0 and abs(gaps.mean() - 0.2) < 0.02 and abs(gaps.std() / gaps.mean() - cv) < 0.2


def test_traces_are_read_whatever_their_columns(tmp_path: Path) -> None:
    azure = tmp_path / "a.csv.gz"
    with gzip.open(azure, "wt") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
        file.write("2023-11-16 18:15:50.6805900,40,0\n")
    first, second = read_trace(azure, None, speed=2.0)
    assert (first.arrival_s, second.arrival_s) == (0.0, pytest.approx(2.0)) and first.output_tokens == 44
    assert len(first.prompt.split()) == 374 and second.output_tokens == 1
    mooncake = tmp_path / "m.jsonl"
    rows = [{"timestamp": 27_000, "input_length": 1100, "output_length": 5, "hash_ids": [7, end, 99]} for end in (8, 9)]
    mooncake.write_text("\n".join(map(json.dumps, rows)))
    shared = [ask.prompt.split() for ask in read_trace(mooncake, None)]
    assert shared[0][:512] == shared[1][:512] and shared[0][512:] != shared[1][512:] and len(shared[0]) == 1100
    assert read_trace(mooncake, 1, most_tokens=2000) and len(read_trace(mooncake, 1)) == 1
    for text in ("", "a,b\n1,2\n", '{"timestamp": 1}\n', "{nonsense\n", "arrival_s,prompt_tokens\n0,5\n"):
        mooncake.write_text(text)
        with pytest.raises(UserError, match="jsonl"):
            read_trace(mooncake, None)


def test_the_plot_holds_every_request(server: Live) -> None:
    run = HttpLoad(Aim(server.url)).run(poisson(40, 8, SHORT, seed=1))
    picture = load_plot("Load <x>", "eight", run)
    assert picture.startswith("<svg") and picture.count("<circle") == 16 and "&lt;x&gt;" in picture


def test_a_script_is_a_backend(scripted: ScriptedEngine, server: Live) -> None:
    reply = server.complete("hi", max_tokens=5)
    assert reply.status == 200 and reply.json["usage"]["completion_tokens"] == 5
    assert server("GET", "/why").status == 400
    for wrong in ("", "1", "a,b", "10,0", "1,2,3"):
        with pytest.raises(UserError, match="script"):
            Script.parse(wrong, 4)
    assert Script.parse("150,10", 4) == Script(0.15, 0.01, 4)


def test_the_verb_takes_a_url(server: Live, tmp_path: Path) -> None:
    picture = tmp_path / "load.svg"
    options = ["--rate", "50", "--requests", "4", "--prompt-tokens", "4", "--output-tokens", "3", "--slo", "ttft=60"]
    done = CliRunner().invoke(app, ["bench", server.url, *options, "--plot", str(picture), "--json"])
    document = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 0 and document["schema"] == "ridgeline.bench_url/1" and picture.exists()
    assert document["summary"]["output_tokens"] == 12 and document["goodput_per_s"] > 0 and not document["errors"]
    assert "goodput" in done.stderr
    wrong = CliRunner().invoke(app, ["bench", server.url, "--slo", "speed=1"])
    assert wrong.exit_code == 2 and "no limit" in wrong.stderr

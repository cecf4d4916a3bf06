"""bench, eval, predict, doctor and pull on a tiny model: their documents, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ridgeline.cli import calibrating
from ridgeline.cli.climb import climb
from ridgeline.cli.screen import Screen
from ridgeline.models.pull import TABLE
from ridgeline.perf.ladder import RUNGS
from ridgeline.perf.rules import CAUSES
from tests.perf.conftest import round_machine

KV = ("--kv-bytes", "4M")


@pytest.fixture
def workload(tmp_path: Path) -> str:
    lines = [
        {"prompt": "hello", "output_tokens": 4},
        {"prompt_ids": [5, 6, 7, 8], "output_tokens": 3, "arrival_s": 0.05, "priority": 1},
    ]
    path = tmp_path / "work.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    return str(path)


def test_bench_measures_each_request(ridgeline, tiny, workload):
    document = ridgeline.document("bench", tiny, "--workload", workload, *KV)
    assert document["schema"] == "ridgeline.bench/1"
    assert [len(request["ids"]) for request in document["requests"]] == [4, 3]
    for request in document["requests"]:
        assert 0 < request["ttft_s"] <= request["e2e_s"]
        assert request["tpot_s"] == pytest.approx((request["e2e_s"] - request["ttft_s"]) / (len(request["ids"]) - 1))
    assert document["summary"]["output_tokens"] == 7 and document["summary"]["failed"] == 0
    assert document["account"]["finished"] == {"length": 2}  # the warm-up is not in it


def test_bench_keeps_its_run(ridgeline, tiny, workload, tmp_path):
    rows = tmp_path / "ledger.jsonl"
    document = ridgeline.document("bench", tiny, "--workload", workload, *KV, "--ledger-out", str(rows))
    head, *lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(head["run"]["requests"]) == 2  # the warm-up is not in it
    for one, asked in zip(head["run"]["requests"], document["requests"], strict=True):
        assert sum(one["wall_ns"].values()) == one["e2e_ns"] and one["output_tokens"] == len(asked["ids"])
        assert one["wall_ns"].get("residual", 0) <= 0.02 * one["e2e_ns"]
    assert {line["kind"] for line in lines} == {"wall", "cost", "step"}


def test_bench_says_so_when_a_request_cannot_be_served(ridgeline, tiny, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt_ids": [5] * 2000, "output_tokens": 4}))
    document = ridgeline.document("bench", tiny, "--workload", str(path), *KV)
    assert document["summary"]["failed"] == 1
    assert "2000" in document["requests"][0]["error"] and document["requests"][0]["ids"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no workload was named"),
        (["--workload", "nowhere.jsonl"], "cannot read the workload"),
        (["--workload", "W1", "--repeats", "0"], "--repeats is 0"),
        (["--workload", "W1", "--plot", "x.svg"], "--ladder"),
        (["--ladder", "--trace-out", "x.json"], "leave --ladder out"),
        (["--ladder", "--plot", "/nowhere/x.svg"], "no folder"),
    ],
)
def test_what_bench_refuses(ridgeline, tiny, arguments, words):
    assert words in ridgeline("bench", tiny, *arguments, *KV, code=2)[1]


def test_the_ladder_measures_beside_its_prediction(tiny, workload, tmp_path, capsys):
    plot = tmp_path / "ladder.svg"
    climb(
        tiny, {"kv_bytes": 1 << 20, "threads": 1}, workload=workload, repeats=1, plot=plot, json=True,
        machine=round_machine(1e9, 1e10), rungs=(RUNGS[0], RUNGS[-1]), has_rival=False,
    )  # fmt: skip
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert document["schema"] == "ridgeline.ladder/1"
    rungs = [rung for rung in document["rungs"] if rung["name"] != "transformers"]
    assert [rung["name"] for rung in rungs] == ["naive", "low-bit weights"]
    assert all(rung["tokens_per_s"] > 0 and rung["predicted_tokens_per_s"] > 0 for rung in rungs)
    assert all(rung["cold_ttft_s"] > 0 and rung["warm_ttft_s"] > 0 for rung in rungs)
    assert "Our rungs on the same weights made the same tokens." in captured.err
    ElementTree.parse(plot)


def test_eval_against_its_own_bits_diverges_by_nothing(ridgeline, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 30)
    arguments = ("eval", tiny, "--text", str(text), "--tokens", "600")
    document = ridgeline.document(*arguments, "--weights", "f32", "--against", "f32")
    quality = document["quality"]
    assert quality["tokens"] == 2 * 511 and quality["windows"] == 2
    assert quality["perplexity"] == quality["parent_perplexity"]
    assert (quality["kl"], quality["agreement"]) == (pytest.approx(0, abs=1e-9), 1.0)
    rounded = ridgeline.document(*arguments, "--weights", "q8_0", "--against", "f32")["quality"]
    assert 0 < rounded["kl"] < 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "nowhere.txt"], "cannot read the text"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--tokens", "99999999"], "Give a longer text"),
        (["--against", "nonsense"], "unknown model"),
    ],
)
def test_what_eval_refuses(ridgeline, tiny, arguments, words):
    assert words in ridgeline("eval", tiny, *arguments, code=2)[1]


def test_predict_says_first_what_does_not_fit(ridgeline):
    stdout, _ = ridgeline(
        "predict", "random:llama-2-70b", "--memory", "80G", "--bandwidth", "2T", "--flops", "312T", "--operators"
    )
    assert stdout.startswith("random:llama-2-70b does not fit")
    assert "together" in stdout and "described, not measured" in stdout


def test_predict_counts_by_operator_and_phase(ridgeline, tiny):
    document = ridgeline.document("predict", tiny, "--operators", "--prompt", "64", "--output", "16", "--batch", "2")
    prefill, decode = document["phases"]
    assert (prefill["tokens"], decode["tokens"]) == (128, 2)
    for phase in (prefill, decode):
        for name in ("flops", "weight_bytes", "kv_bytes", "activation_bytes"):
            assert sum(row[name] for row in phase["rows"]) == pytest.approx(phase[name])
        total_s = sum(row["predicted_s"] for row in phase["rows"]) + phase["overhead_s"]
        assert total_s == pytest.approx(phase["predicted_s"])
    assert document["ceilings"]["rates"] and document["ceilings"]["host_s"] > 0  # calibrated, without being asked
    assert document["bill"]["fits"] is True
    assert document["parameters"] == 2 * 320 * 64 + 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 96 + 2 * 64) + 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "0"], "--prompt is 0"),
        (["--batch", "-1"], "--batch is -1"),
        (["--bandwidth", "2T"], "one of them is missing"),
        (["--bandwidth", "fast", "--flops", "1T"], "not a rate"),
        (["--prompt", "5000"], "1024"),
    ],
)
def test_what_predict_refuses(ridgeline, tiny, arguments, words):
    assert words in ridgeline("predict", tiny, *arguments, code=2)[1]


def test_doctor_lists_the_catalogue_and_says_that_it_is_one(ridgeline):
    stdout, _ = ridgeline("doctor", "--devices")
    assert "NVIDIA H100 SXM" in stdout and "catalogue: dense peaks, not measured" in stdout
    document = ridgeline.document("doctor", "--devices")
    assert document["label"] == "catalogue" and all(one["sources"] for one in document["devices"])


def test_doctor_shows_the_binding_table(ridgeline, tiny):
    document = ridgeline.document("doctor", tiny)
    assert document["machine"]["cpu"] and document["ceilings"]["flops_per_s"]["f32"] > 0
    assert {row["part"] for row in document["bodies"]} >= {"embed", "qkv", "attend", "head", "sample"}
    assert {row["body"] for row in document["bodies"]} == {"cpp"}
    stdout, _ = ridgeline("doctor")
    assert "attend" in stdout and "measured" in stdout


def test_pull_lists_what_there_is_and_refuses_the_rest(ridgeline):
    assert "smollm2-135m" in ridgeline("pull", "--list")[0]
    assert "smollm2-135m" in ridgeline.document("pull", "--list")["models"]
    assert "can be pulled" in ridgeline("pull", "nonsense", code=2)[1]
    assert "no model was named" in ridgeline("pull", code=2)[1]


def test_a_model_with_terms_says_them_before_it_is_fetched(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RIDGELINE_HOME", str(tmp_path))
    with Screen(json=True).fetching("gemma-3-270m"):
        said = capsys.readouterr().err
    assert TABLE["gemma-3-270m"].terms in " ".join(said.split())
    with Screen(json=True).fetching("smollm2-135m"), Screen(json=True).fetching("some/path.gguf"):
        assert not capsys.readouterr().err


def test_explain_names_a_cause_with_its_evidence(ridgeline, tiny, workload):
    document = ridgeline.document("explain", tiny, "--workload", workload, *KV)
    assert document["schema"] == "ridgeline.explain/1"
    verdict, evidence = document["verdict"], document["evidence"]
    assert verdict["cause"] in CAUSES and verdict["evidence"]
    assert evidence["steps"] > 0 and evidence["process"]["threads"] >= 1
    assert {part["name"] for part in evidence["parts"]} >= {"qkv", "attend", "head"}


def test_explain_judges_a_finished_run_again(ridgeline, tiny, tmp_path):
    stdout, _ = ridgeline("explain", tiny, "--json", *KV)
    (tmp_path / "run.json").write_text(stdout)
    again = ridgeline.document("explain", str(tmp_path / "run.json"))
    assert again["verdict"] == json.loads(stdout)["verdict"]
    assert json.loads(stdout)["verdict"]["cause"] in ridgeline("explain", str(tmp_path / "run.json"))[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the run"),
        ("not json", "is no run of ours"),
        ('{"schema": "ridgeline.pull/1"}', "without evidence"),
    ],
)
def test_what_explain_refuses(ridgeline, tmp_path, content, words):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    assert words in ridgeline("explain", str(path), code=2)[1]
    assert "--workload" in ridgeline("explain", str(path), "--workload", "W1", code=2)[1]
    assert "unknown model" in ridgeline("explain", "no-such-model", code=2)[1]


def test_an_engine_that_decides_by_estimates_is_started_calibrated(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(calibrating, "calibrated", lambda program, *others: asked.append(program))
    screen = Screen(True)
    for options in ({}, {"place": "serial"}, {"place": "corun"}, {"place": "disaggregated"}):
        calibrating.calibrate_first(screen, tiny, options)
    assert not asked
    for options in ({"place": "chunked:tbt=50ms"}, {"place": "auto"}, {"place": "split"}, {"spec": "ngram"}):
        calibrating.calibrate_first(screen, tiny, options)
    assert len(asked) == 4
    calibrating.calibrate_first(screen, "nowhere", {"place": "auto"})  # its start says what is wrong
    assert len(asked) == 4

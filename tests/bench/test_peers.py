"""The peer table: same work for every engine, a conversation with its worker, fair arithmetic."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
NAMES = ("workloads", "environment", "llamacpp_binaries", "models", "engines", "rows", "turn", "workers", "protocol")
FAKE = f"""
import sys
sys.path.insert(0, {str(BENCH / "peers")!r})
from protocol import Watch, serve

class Fake:
    facts = {{"build": "fake", "weight_bytes": 100}}

    def run(self, job):
        print("noise of a library")
        watch = Watch(len(job["requests"]))
        for index, request in enumerate(job["requests"]):
            assert request["prompt_ids"][0] != 13, "unlucky"
            for token in range(request["output_tokens"]):
                watch.add(index, [token])
        return {{"requests": watch.results(), "machine": job.get("machine")}}

serve(lambda options: Fake())
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH / "peers"))
    monkeypatch.syspath_prepend(str(BENCH))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name)
    return found


def result(tokens: int, tpot_s: float, **more: Any) -> dict[str, Any]:
    e2e_s = 0.5 + tpot_s * (tokens - 1)
    request = {"ids": list(range(tokens)), "ttft_s": 0.5, "e2e_s": e2e_s}
    memory = {"RssAnon": 1 << 20, "RssFile": 0, "RssShmem": 0}
    return {"requests": [request], "wall_s": e2e_s, "memory": memory, "facts": {"weight_bytes": 100e6}} | more


def lengths(lines: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(len(line["prompt_ids"]), line["output_tokens"]) for line in lines]


def test_workloads_follow_their_law_and_are_salted_by_repetition(scripts: dict[str, ModuleType]) -> None:
    workload = scripts["workloads"].workload
    first, second = workload("W3", 0), workload("W3", 1)
    assert len(first) == 64 and lengths(first) == lengths(second)
    assert all(16 <= tokens_in <= 1024 and 8 <= tokens_out <= 256 for tokens_in, tokens_out in lengths(first))
    assert 150 < sum(tokens_in for tokens_in, _ in lengths(first)) / 64 < 250  # mean 200; 64 draws with sigma 0.8
    assert first[0]["prompt_ids"] != second[0]["prompt_ids"] and first == workload("W3", 0)
    assert lengths(workload("W1", 0)) == [(128, 128)] and lengths(workload("W2-512", 0)) == [(512, 1)]
    assert lengths(workload("D32", 0)) == [(128, 128)] * 32
    shared = workload("W4", 0)
    assert lengths(shared) == [(544, 32)] * 64
    assert len({tuple(line["prompt_ids"][:512]) for line in shared}) == 1
    assert len({tuple(line["prompt_ids"][512:]) for line in shared}) == 64
    assert all(1000 <= token <= 30000 for line in first for token in line["prompt_ids"])
    with pytest.raises(SystemExit, match="unknown workload 'W2-0'"):
        workload("W2-0", 0)


def test_rows_are_medians_ratios_and_shares(scripts: dict[str, ModuleType]) -> None:
    engines, rows = scripts["engines"], scripts["rows"]
    ours, theirs = engines.Engine("Ridgeline", "native", 4, "file"), engines.Engine("llama.cpp", "Q4_0", 4, "gguf:Q4_0")
    bench = {"ttft_s": 0.4, "decode_tokens_per_s": 60.0}
    runs = []
    for repetition, tpot_s in enumerate((0.009, 0.010, 0.030)):
        mine = result(128, tpot_s, bound_s={"prefill": 0.1, "decode": 127 * tpot_s / 2})
        runs.append(rows.Run(ours.name, "W1", repetition, mine, 0.02, 0.0, 20e9))
        runs.append(rows.Run(theirs.name, "W1", repetition, result(128, 2 * tpot_s, bench=bench), 0.2, 0.0, 20e9))
    found = rows.rows_of("W1", (ours, theirs), runs)
    assert [row.engine for row in found] == ["Ridgeline native", "llama.cpp Q4_0", "llama.cpp Q4_0 (llama-bench)"]
    assert [round(row.value) for row in found] == [100, 50, 60]
    assert found[0].read_share == pytest.approx(100 * 100e6 / 20e9) and found[0].bound_share == pytest.approx(0.5)
    assert found[1].same_bits_ratio == pytest.approx(2.0) and found[2].best_ratio == pytest.approx(100 / 60)
    shown = "\n".join(rows.table_lines("W1", found))
    assert "2.00x" in shown and "20%!" in shown and "(llama-bench)): 1.67x" in shown


def test_a_time_is_better_when_shorter_and_counts_the_bound_of_the_whole_job(scripts: dict[str, ModuleType]) -> None:
    engines, rows = scripts["engines"], scripts["rows"]
    ours, theirs = engines.Engine("Ridgeline", "native", 4, "file"), engines.Engine("openvino", "int8", 8, "openvino")
    mine, other = result(1, 0.0, bound_s={"prefill": 0.2}), result(1, 0.0)
    other["requests"][0]["ttft_s"] = 1.0
    runs = [rows.Run(ours.name, "W2-512", 0, mine, None, 0.0, 2e10)]
    runs += [rows.Run(theirs.name, "W2-512", 0, other, None, 0.0, 2e10)]
    first, second = rows.rows_of("W2-512", (ours, theirs), runs)
    assert (first.value, second.value) == (500.0, 1000.0) and first.bound_share == pytest.approx(0.4)
    assert second.best_ratio == 2.0 and second.same_bits_ratio is None


def test_tokens_are_compared_with_our_most_exact_weights(scripts: dict[str, ModuleType]) -> None:
    engines, rows = scripts["engines"], scripts["rows"]
    some = [engines.Engine("Ridgeline", "native", 4, "file"), engines.Engine("Ridgeline", "bf16", 16, "file")]
    some.append(engines.Engine("vllm", "bf16", 16, "safetensors:bfloat16"))
    runs = [rows.Run(engine.name, "W1", 0, result(8, 0.1), None, 0.0, 2e10) for engine in some]
    runs[2].result["requests"][0]["ids"][5] = 77
    found = rows.same_tokens(runs, some)
    assert {line["reference"] for line in found} == {"Ridgeline bf16"}
    assert [line["equal"] for line in found] == [8, 8, 5]


def started(scripts: dict[str, ModuleType], folder: Path, text: str = FAKE) -> Any:
    script = folder / "fake_worker.py"
    script.write_text(text, encoding="utf-8")
    command = [sys.executable, str(script), "--model", "none", "--precision", "int8"]
    return scripts["workers"].Worker(command, folder / "log", limit_s=20)


def test_a_worker_answers_jobs_whatever_its_libraries_print(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    worker = started(scripts, tmp_path)
    assert worker.ready["first_token_s"] >= worker.ready["start_s"] > 0
    requests = [{"prompt_ids": [1, 2], "output_tokens": 3}, {"prompt_ids": [5], "output_tokens": 1}]
    answer = worker.run(requests, {"threads": 2})
    assert [one["ids"] for one in answer["requests"]] == [[0, 1, 2], [0]]
    assert answer["machine"] == {"threads": 2} and answer["facts"]["build"] == "fake"
    assert answer["memory"]["RssAnon"] > 0 and answer["requests"][0]["e2e_s"] >= answer["requests"][0]["ttft_s"]
    assert worker.cpu_s() >= 0
    worker.stop()
    assert "noise of a library" in (tmp_path / "log").read_text()


def test_a_workers_error_is_told(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    worker = started(scripts, tmp_path)
    with pytest.raises(scripts["workers"].WorkerError, match="unlucky"):
        worker.run([{"prompt_ids": [13], "output_tokens": 1}])
    worker.stop()


def test_a_worker_that_does_not_start_is_told(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(scripts["workers"].WorkerError, match="no such model"):
        started(scripts, tmp_path, "raise SystemExit('no such model')")


def test_engines_come_by_peer_and_say_what_they_do(scripts: dict[str, ModuleType]) -> None:
    engines = scripts["engines"]
    found = engines.contestants(["openvino"], ["native/auto", "bf16"])
    assert [one.name for one in found] == ["Ridgeline native/auto", "Ridgeline bf16", "openvino int4", "openvino int8"]
    assert [one.bits for one in found] == [4, 16, 4, 8]
    slow = next(one for one in engines.PEERS if one.peer == "transformers")
    assert slow.does("W1") and not slow.does("W3")
    assert set(engines.SCRIPTS) == {one.peer for one in engines.PEERS} | {"Ridgeline"}
    assert all((BENCH / "peers" / script).exists() for script in engines.SCRIPTS.values())
    assert {one.peer for one in engines.PEERS} <= set(scripts["environment"].RECIPES)
    with pytest.raises(SystemExit, match="unknown peer ollama"):
        engines.contestants(["ollama"], [])


def test_a_made_environment_is_kept(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    environment = scripts["environment"]
    folder = tmp_path / "environments" / "openvino"
    folder.mkdir(parents=True)
    (folder / "recipe").write_text(str(environment.RECIPES["openvino"]), encoding="utf-8")
    assert environment.environment("openvino", tmp_path) == folder


def test_a_conversion_that_broke_off_is_done_again(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    models = scripts["models"].Models(tmp_path / "some.gguf", tmp_path, lambda peer: tmp_path)
    assert models.get("file") == tmp_path / "some.gguf"

    def broken(part: Path) -> None:
        part.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        models._made("folder", broken)
    made = models._made("folder", lambda part: part.mkdir())
    assert made.is_dir() and models._made("folder", broken) == made


def test_a_turn_is_taken_and_given_back(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, path = scripts["turn"], tmp_path / "quiet"
    monkeypatch.setattr(turn, "SETTLE_S", 0.0)
    calm = iter([0.5, 0.01])
    mine = turn.Turn(path, lambda: next(calm))
    mine.take()
    assert path.exists() and (tmp_path / "quiet.lock").is_dir()
    mine.take()  # still ours
    mine.give()
    assert not path.exists() and not (tmp_path / "quiet.lock").exists()
    nobody = turn.Turn(None, lambda: 0.0)
    nobody.take(), nobody.wait(), nobody.give()


def test_library_links_that_a_wheel_loses_are_put_back(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("llama-server", "libggml.so.0.26.0"):
        (folder / name).write_text(json.dumps(name))
    binaries = scripts["llamacpp_binaries"].Binaries(tmp_path)
    assert (binaries.scratch / "libggml.so.0").resolve() == folder / "libggml.so.0.26.0"
    assert binaries.settings["LD_LIBRARY_PATH"] == str(binaries.scratch)
    binaries.close()

"""The first speed table: same work for every engine, fair arithmetic, a table and one JSON document."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
NAMES = ("workloads", "environment", "llamacpp", "first_speed_table")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH / "peers"))
    monkeypatch.syspath_prepend(str(BENCH))
    found = {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name)
    return found


def result(tokens: int, tpot_s: float, **more: Any) -> dict[str, Any]:
    e2e_s = 0.5 + tpot_s * (tokens - 1)
    request = {"ids": list(range(tokens)), "ttft_s": 0.5, "tpot_s": tpot_s, "e2e_s": e2e_s}
    return {"requests": [request], "summary": {"wall_s": e2e_s, "output_tokens_per_s": tokens / e2e_s}} | more


def test_workloads_follow_their_law_and_are_salted_by_repetition(scripts: dict[str, ModuleType]) -> None:
    workload = scripts["workloads"].workload
    first, second = workload("W3", 0), workload("W3", 1)
    lengths = [(len(line["prompt_ids"]), line["output_tokens"]) for line in first]
    assert len(first) == 64 and lengths == [(len(line["prompt_ids"]), line["output_tokens"]) for line in second]
    assert all(16 <= tokens_in <= 1024 and 8 <= tokens_out <= 256 for tokens_in, tokens_out in lengths)
    assert 150 < sum(tokens_in for tokens_in, _ in lengths) / 64 < 250  # mean 200; 64 draws with sigma 0.8
    assert first[0]["prompt_ids"] != second[0]["prompt_ids"] and first == workload("W3", 0)
    assert [(len(line["prompt_ids"]), line["output_tokens"]) for line in workload("W1", 0)] == [(128, 128)]


def test_rows_are_medians_ratios_and_shares(scripts: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    table = scripts["first_speed_table"]
    ours = table.Engine("ridgeline native", lambda path: [])
    theirs = table.Engine("llama.cpp file", lambda path: [])
    facts = {"resident_weight_bytes": 100e6, "body": "cpp", "isa": "avx512"}
    bench = {"ttft_s": 0.4, "decode_tokens_per_s": 60.0, "weight_bytes": 100e6}
    for repetition, tpot_s in enumerate((0.009, 0.010, 0.030)):
        ours.runs.setdefault("W1", []).append(table.Run(repetition, result(128, tpot_s, facts=facts), 0.02))
        theirs.runs.setdefault("W1", []).append(table.Run(repetition, result(128, 2 * tpot_s, bench=bench), 0.2))
    rows = [row for engine in (ours, theirs) for row in table.rows_of("W1", engine, bandwidth=20e9)]
    assert [row["engine"] for row in rows] == ["ridgeline native", "llama.cpp file", "llama.cpp file (llama-bench)"]
    assert [round(row["tokens_per_s"]) for row in rows] == [100, 50, 60]
    assert rows[0]["bandwidth_share"] == pytest.approx(100 * 100e6 / 20e9)
    table.print_table(rows, 20e9)
    shown = capsys.readouterr().out
    assert "2.00" in shown and "20%!" in shown and "20.0 GB/s" in shown
    assert table.build_of(ours.runs["W1"][0].result) == "cpp kernels for avx512"


def test_a_command_gives_its_last_line_and_the_share_of_others(scripts: dict[str, ModuleType]) -> None:
    code = "print('words'); import json; print(json.dumps({'summary': {}}))"
    document, foreign = scripts["first_speed_table"].measured([sys.executable, "-c", code])
    assert document == {"summary": {}} and 0.0 <= foreign <= 1.0 + 1e-6


def test_a_failing_engine_is_named(scripts: dict[str, ModuleType]) -> None:
    with pytest.raises(SystemExit, match="no such model"):
        scripts["first_speed_table"].measured([sys.executable, "-c", "raise SystemExit('no such model')"])


def test_library_links_that_a_wheel_loses_are_put_back(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    folder, links = tmp_path / "bin", tmp_path / "links"
    folder.mkdir(), links.mkdir()
    for name in ("llama-server", "libggml.so.0.26.0"):
        (folder / name).write_text(json.dumps(name))
    binaries = scripts["llamacpp"].Binaries(tmp_path, links)
    assert (links / "libggml.so.0").resolve() == folder / "libggml.so.0.26.0"
    assert binaries.settings["LD_LIBRARY_PATH"] == str(links)

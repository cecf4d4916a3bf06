"""Batch: every line has one answer, whatever killed the run, and the answers are those of the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ridgeline
from ridgeline.kit.errors import UserError
from ridgeline.serve.batch import answered, read_batch

from .live import Live
from .test_life import until


def write_lines(path: Path, count: int, tokens: int) -> None:
    bodies = [
        {"model": "tiny", "prompt": f"number {number}", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        for number in range(count)
    ]
    bodies[3] |= {"temperature": -1}  # refused, and that is its answer
    lines = [
        {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/completions", "body": body}
        for number, body in enumerate(bodies)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def begin(tiny: str, home: Path, source: Path, out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(ridgeline.__file__).parents[1]), "RIDGELINE_HOME": str(home)}
    command = [sys.executable, "-m", "ridgeline.cli.main", "batch", str(source), str(out), "--model", tiny, "--json"]
    options = ["--threads", "1", "--kv-bytes", "8M", "--max-sequences", "4"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_killed_and_started_again_nothing_is_lost_or_doubled(
    tiny: str, home: Path, tmp_path: Path, server: Live
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_lines(source, 60, 120)
    first = begin(tiny, home, source, out)
    until(lambda: first.poll() is not None or (out.exists() and out.read_bytes().count(b"\n") >= 5))
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    before = out.read_bytes()
    assert 5 <= before.count(b"\n") < 60
    with out.open("ab") as file:  # as if it had been killed in the middle of a line
        file.write(b'{"id":"batch_req_torn","custom_id":"id-59","resp')
    second = begin(tiny, home, source, out)
    stdout, stderr = second.communicate(timeout=120)
    assert second.returncode == 0, stderr
    document = json.loads(stdout.splitlines()[-1])
    assert document["answered_before"] == before.count(b"\n") and document["requests"] == 60
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert out.read_bytes().startswith(before)
    assert sorted(one["custom_id"] for one in answers) == sorted(f"id-{number}" for number in range(60))
    by_id = {one["custom_id"]: one["response"] for one in answers}
    assert by_id["id-3"]["status_code"] == 400 and by_id["id-3"]["body"]["error"]["param"] == "temperature"
    over_http = server.complete("number 7", max_tokens=120).json
    assert by_id["id-7"]["body"]["choices"] == over_http["choices"] and by_id["id-7"]["request_id"]
    third = begin(tiny, home, source, out)
    assert third.communicate(timeout=120) and third.returncode == 0 and len(out.read_text().splitlines()) == 60


def test_files_that_are_none_are_refused_by_line(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    good = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}\n'
    for text, said in (
        ("", "no request"), (good + "{nonsense\n", "line 2"), (good + good, "used before"),
        ('{"custom_id": "a"}\n', "line 1"), (good.replace("/v1/completions", "/etc"), "none of"),
        (good.replace("POST", "GET"), "none of"),
    ):  # fmt: skip
        source.write_text(text)
        with pytest.raises(UserError, match=said):
            read_batch(source)
    with pytest.raises(UserError, match="cannot read"):
        read_batch(tmp_path / "nowhere")
    out = tmp_path / "out.jsonl"
    assert answered(out) == set()
    out.write_text("precious notes\n")
    with pytest.raises(UserError, match="another OUT"):
        answered(out)
    assert out.read_text() == "precious notes\n"

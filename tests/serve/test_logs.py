"""Logs: one line a request with what is known of it, and nothing secret; a full disk costs lines, not answers."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.serve import logs

from .live import Live, live
from .test_life import until


@contextlib.contextmanager
def logging_to(kind: str, path: Path | None) -> Iterator[logs.Writer]:
    writer = logs.begin(kind, path)
    try:
        yield writer
    finally:
        logs.end(writer)


def test_a_line_a_request_as_json(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with live(llm, keys=("sk-secret alice",)) as server, logging_to("json", path):
        server.chat("a prompt nobody may read", max_tokens=5)
        server("POST", "/v1/completions", {"model": "tiny", "prompt": "hush", "max_tokens": 3, "stream": True},
               {"x-request-id": "mine"})  # fmt: skip
        server("GET", "/health")
        server("GET", "/v1/models/hush%07", headers={"Authorization": "Bearer sk-wrong"})
        until(lambda: path.read_text().count("\n") == 3)
    text = path.read_text()
    first, second, third = map(json.loads, text.splitlines())
    assert first["event"] == "request" and first["status"] == 200 and first["tenant"] == "alice"
    assert first["completion_tokens"] == 5 and first["prompt_tokens"] > 5 and 0 < first["ttft_s"] <= first["seconds"]
    assert first["ended"] == "length" and len(first["request_id"]) == 24 and first["at"].endswith("+00:00")
    assert second["request_id"] == "mine" and second["completion_tokens"] == 3
    assert third["status"] == 401 and "\\u0007" in text
    assert not any(secret in text for secret in ("sk-secret", "sk-wrong", "nobody may read", 'hush"'))


def test_words_show_no_control_characters(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with live(llm) as server, logging_to("text", path):
        server("GET", "/v1/models/%1b[31mred%0aline")
        until(lambda: path.read_text().count("\n") == 1)
    assert "status=404" in path.read_text() and "\x1b" not in path.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_costs_lines_and_nothing_else(server: Live, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    with logging_to("json", path) as writer:
        for _ in range(3):
            assert server.chat(max_tokens=2).status == 200
        until(lambda: writer.lost == 3)
        path.unlink()  # room again: the next line is written, and only once
        logging.getLogger(logs.NAME).info("one line is lost with the file that was full")
        until(lambda: writer.lost == 4)
        logging.getLogger(logs.NAME).info("another")
        until(lambda: path.exists() and "another" in path.read_text())
    assert path.read_text().count("\n") == 1


def test_a_reader_that_stands_still_costs_lines_too() -> None:
    writer = logs.Writer("json", None)
    writer.close()  # nobody writes any more
    record = logging.LogRecord("x", logging.INFO, "", 0, "line", (), None)
    for _ in range(logs.WAITING + 5):
        writer.emit(record)
    assert writer.lost >= 4
    for kind, path in (("xml", None), ("json", Path("/nowhere/log"))):
        with pytest.raises(UserError):
            logs.Writer(kind, path)

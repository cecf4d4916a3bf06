"""One tiny model, one engine process and one server for all tests of the room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ridgeline.llm import LLM
from tests.cli.conftest import write_model

from .live import KEY, Live, live


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One RIDGELINE_HOME for the session: this machine is measured once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def llm(tiny: str) -> Iterator[LLM]:
    with LLM(tiny, threads=1, kv_bytes=8 << 20) as llm:
        yield llm


@pytest.fixture(scope="session")
def server(llm: LLM) -> Iterator[Live]:
    with live(llm) as running:
        yield running


@pytest.fixture(scope="session")
def keyed(llm: LLM) -> Iterator[Live]:
    """The same engine behind a server that asks for keys."""
    with live(llm, keys=(f"{KEY} alice", "sk-other bob")) as running:
        yield running

"""One tiny model, one engine process and one server for all tests of the room."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ridgeline.llm import LLM
from tests.cli.conftest import TEMPLATE, write_model

from .live import KEY, Live, live

TOOLS = "{% if tools %}<|start|>tools: {{ tools | tojson }} write <tool_call> {% endif %}{{ reasoning_effort or '' }}"
CALLS = "{% for call in message.tool_calls or () %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Knows tools and efforts too, which change nothing where they are not used."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_model(directory)
    template = TOOLS + TEMPLATE.replace("{{ message.content }}", "{{ message.content }}" + CALLS)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|end|>"}))
    return str(directory)


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

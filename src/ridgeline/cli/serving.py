"""What `ridgeline serve` does: starts the engine, opens the port, says where, and ends with the server."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.run.machine import load_or_measure
from ridgeline.serve import logs
from ridgeline.serve.door import Door
from ridgeline.serve.keys import Keys
from ridgeline.serve.scripted import Script, ScriptedEngine
from ridgeline.serve.served import Limits, Served
from ridgeline.serve.server import Server, listen
from ridgeline.serve.traces import Traces

from .screen import Screen


@dataclass(frozen=True)
class Asked:
    """Everything `serve` was told; options are fields of EngineConfig."""

    model: str
    name: str
    host: str
    port: int
    key_file: Path | None
    key: str | None
    options: dict[str, Any]
    open_metrics: bool
    limits: Limits
    scripted: str | None = None
    is_aliasing: bool = False
    log_format: str = "off"
    log_file: Path | None = None
    otlp_endpoint: str | None = None


def serve(asked: Asked, *, json: bool) -> int:
    """Until a signal; returns the exit code."""
    screen = Screen(json)
    keys = _keys(asked)
    if not keys and not _is_local(asked.host):
        print(f"warning: {asked.host} can be reached from elsewhere, and no key is needed.", file=sys.stderr)
    if asked.log_file is not None and asked.log_format == "off":
        raise UserError("--log-file needs --log-format text or json.")
    traces = None if asked.otlp_endpoint is None else Traces.otlp(asked.otlp_endpoint, asked.name)
    listening = listen(asked.host, asked.port)
    with closing(listening), _logging(asked), nullcontext() if traces is None else closing(traces):
        engine = _engine(asked, screen)
        with closing(engine), closing(Served(asked.name, engine, asked.limits)) as served:
            served.traces = traces
            door = Door(served, keys, open_metrics=asked.open_metrics, is_aliasing=asked.is_aliasing)
            server = Server(door, listening, lambda url: _announce(asked, url, json))
            server.run()
            return server.exit_code


@contextmanager
def _logging(asked: Asked) -> Iterator[None]:
    if asked.log_format == "off":
        yield
        return
    writer = logs.begin(asked.log_format, asked.log_file)
    try:
        yield
    finally:
        logs.end(writer)


def _engine(asked: Asked, screen: Screen) -> LLM | ScriptedEngine:
    if asked.scripted is not None:
        return ScriptedEngine.of(asked.model, Script.parse(asked.scripted, asked.options["max_sequences"]))
    with screen.fetching(asked.model) as progress:
        llm = LLM(asked.model, progress=progress, **asked.options)
    screen.notes(asked.model, llm.notes)
    load_or_measure(llm.facts.threads)  # now: later it would disturb answers
    return llm


def _keys(asked: Asked) -> Keys:
    if asked.key_file is not None:
        return Keys.from_file(asked.key_file)
    return Keys([asked.key] if asked.key else [])


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _announce(asked: Asked, url: str, json: bool) -> None:
    if json:
        document = {"schema": "ridgeline.serve/1", "url": url, "model": asked.name}
        print(msgspec.json.encode(document).decode(), flush=True)
    else:
        print(f"{asked.name} at {url}/v1 (SIGTERM or Ctrl-C ends it)", flush=True)

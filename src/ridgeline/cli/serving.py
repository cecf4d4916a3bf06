"""What `ridgeline serve` does: starts the engine, opens the port, says where, and ends with the server."""

from __future__ import annotations

import gc
import ipaddress
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.kit.give_back import share_heap
from ridgeline.llm import LLM
from ridgeline.models.pull import TABLE, pull
from ridgeline.run.machine import load_or_measure
from ridgeline.serve import logs
from ridgeline.serve.door import Door
from ridgeline.serve.keys import Keys
from ridgeline.serve.scripted import Script, ScriptedEngine
from ridgeline.serve.served import Limits, Served
from ridgeline.serve.server import Server, listen
from ridgeline.serve.traces import Traces

from .calibrating import calibrate_first
from .screen import Screen
from .sharing import Share, named, shares

TURN_S = 0.0005  # a thread that computes (a page of the account) yields to the one that serves after so long


@dataclass(frozen=True)
class Asked:
    """Everything `serve` was told; options are fields of EngineConfig."""

    models: Sequence[str]
    name: str | None
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
    sys.setswitchinterval(TURN_S)
    share_heap()
    screen = Screen(json)
    keys = _keys(asked)
    if not keys and not _is_local(asked.host):
        print(f"warning: {asked.host} can be reached from elsewhere, and no key is needed.", file=sys.stderr)
    if asked.log_file is not None and asked.log_format == "off":
        raise UserError("--log-file needs --log-format text or json.")
    models = named(asked.models, asked.name)
    traces = None if asked.otlp_endpoint is None else Traces.otlp(asked.otlp_endpoint, next(iter(models)))
    listening = listen(asked.host, asked.port)
    sent = nullcontext() if traces is None else closing(traces)
    with closing(listening), _logging(asked), sent, ExitStack() as open_:
        for model in TABLE.keys() & set(models.values()):  # before anything is counted
            with screen.fetching(model) as progress:
                pull(model, progress)
        lineup = []
        for share in shares(models, asked.options, is_scripted=asked.scripted is not None):
            if len(models) > 1:
                screen.say(str(share))
            engine = open_.enter_context(closing(_engine(asked, share, screen)))
            served = open_.enter_context(closing(Served(share.name, engine, asked.limits)))
            served.traces = None if traces is None else traces.of(share.name)
            lineup.append(served)
        door = Door(lineup, keys, open_metrics=asked.open_metrics, is_aliasing=asked.is_aliasing)
        server = Server(door, listening, lambda url: _announce(list(models), url, json))
        gc.collect()
        gc.freeze()  # what was loaded stays until the end: no collection needs to walk it again
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


def _engine(asked: Asked, share: Share, screen: Screen) -> LLM | ScriptedEngine:
    if asked.scripted is not None:
        return ScriptedEngine.of(share.model, Script.parse(asked.scripted, share.options["max_sequences"]))
    calibrate_first(screen, share.model, share.options)
    llm = LLM(share.model, **share.options)
    screen.notes(share.model, llm.notes)
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


def _announce(names: Sequence[str], url: str, json: bool) -> None:
    if json:
        document = {"schema": "ridgeline.serve/1", "url": url, "model": names[0], "models": names}
        print(msgspec.json.encode(document).decode(), flush=True)
    else:
        print(f"{', '.join(names)} at {url}/v1 (SIGTERM or Ctrl-C ends it)", flush=True)

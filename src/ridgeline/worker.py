"""The engine process: `python -m ridgeline.worker --fd N`. Composition root: joins engine, account and
exchange.

Started by engine.client.EngineClient only. The parent decides about Ctrl-C; SIGTERM ends this process cleanly.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys

from ridgeline.cluster.exchange import Exchange
from ridgeline.engine.build import Parts, build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.engine.process import serve
from ridgeline.perf.account import Account
from ridgeline.state.ports import StepObserver


def account(parts: Parts) -> StepObserver:
    """Who watches the steps of this process."""
    return Account(parts.program.reaches, tuple(line.part for line in parts.program))


def make_engine(config: EngineConfig) -> Engine:
    return build(config, observer_factory=account)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ridgeline.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the connected socket to serve")
    parser.add_argument("--door", type=int, help="a socket through which other engines are introduced")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    connection, door = socket.socket(fileno=arguments.fd), arguments.door
    if door is None:
        return serve(connection, make_engine)
    return serve(connection, make_engine, lambda engine: Exchange(engine, socket.socket(fileno=door)))


if __name__ == "__main__":
    sys.exit(main())

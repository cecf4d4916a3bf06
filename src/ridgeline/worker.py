"""The engine process: `python -m ridgeline.worker --fd N`, or `--call HOST:PORT --name NAME` from another machine.

Composition root: joins engine, account and exchange. Started by engine.client.EngineClient, or for cluster.guests. The
parent decides about Ctrl-C; SIGTERM ends this process cleanly, and so does the end of a guest's standard input.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading

from ridgeline.cluster.calling import CallingDoor, DoorBroken
from ridgeline.cluster.door import DescriptorDoor
from ridgeline.cluster.exchange import Exchange
from ridgeline.cluster.guests import DOOR, NO_ANSWER, NOT_OURS
from ridgeline.cluster.handshake import Stranger, call, read_address
from ridgeline.cluster.reception import Reception
from ridgeline.engine.build import Parts, build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.engine.process import serve
from ridgeline.kit.clock import WallClock
from ridgeline.perf.account import Account
from ridgeline.state.ports import StepObserver

ORPHANED = 75  # exit code: whoever started this process is gone


def account(parts: Parts) -> StepObserver:
    """Who watches the steps of this process."""
    return Account(parts.program.reaches, tuple(line.part for line in parts.program))


def make_engine(config: EngineConfig) -> Engine:
    return build(config, observer_factory=account)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ridgeline.worker", description=__doc__)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--fd", type=int, help="the connected socket to serve")
    start.add_argument("--call", help="HOST:PORT of the cluster; its secret is the first line of standard input")
    parser.add_argument("--door", type=int, help="a socket through which other engines are introduced")
    parser.add_argument("--name", default="", help="who is expected to call")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    if arguments.call:
        return be_guest(arguments.call, arguments.name, sys.stdin.fileno())
    connection, door = socket.socket(fileno=arguments.fd), arguments.door
    if door is None:
        return serve(connection, make_engine)
    return serve(connection, make_engine, lambda engine: Exchange(engine, DescriptorDoor(socket.socket(fileno=door))))


def be_guest(where: str, name: str, lifeline: int) -> int:
    """Serve a cluster on another machine, until it or whoever started this process goes away. lifeline: a file
    descriptor; it says the secret, and ends with who started this process. Returns the exit code."""
    secret = bytes.fromhex(_line(lifeline))
    try:
        address = read_address(where)
        connection = call(address, secret, name)
        beside = call(address, secret, name + DOOR)
        door = CallingDoor(beside, secret, Reception(connection.getsockname()[0], secret))
        clock = WallClock(door.announce())
    except (OSError, DoorBroken) as error:
        print(f"nobody answers at {where}: {error}", file=sys.stderr)
        return NO_ANSWER
    except Stranger as error:
        print(error, file=sys.stderr)
        return NOT_OURS
    threading.Thread(target=_end_with, args=(lifeline,), name="ridgeline-lifeline", daemon=True).start()
    return serve(
        connection,
        lambda config: build(config, observer_factory=account, clock=clock),
        lambda engine: Exchange(engine, door),
    )


def _line(number: int) -> str:
    data = b""
    while not data.endswith(b"\n") and (more := os.read(number, 1)):
        data += more
    return data.decode("ascii").strip()


def _end_with(lifeline: int) -> None:
    """Nobody is left who would end this process, should its cluster never speak again."""
    while os.read(lifeline, 1024):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())

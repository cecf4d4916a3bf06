"""Hosts for tests: "another machine" is this one. Workers know of who starts them an address and a secret, no more."""

from __future__ import annotations

import subprocess
import sys

from ridgeline.cluster.build import configs_of
from ridgeline.cluster.cluster import Cluster
from ridgeline.cluster.guests import Guests
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import make_place


class Detached(subprocess.Popen[bytes]):
    where = "on the machine next door"


class NextDoor:
    """command: started instead of workers."""

    def __init__(self, *, command: tuple[str, ...] = ()) -> None:
        self.address = "127.0.0.1"
        self._command = command or (sys.executable, "-P", "-m", "ridgeline.worker")
        self.guests: list[Detached] = []

    def start(self, name: str, call: str, secret: str, threads: int) -> Detached:
        command = (*self._command, "--call", call, "--name", name)
        guest = Detached(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
        assert guest.stdin is not None
        guest.stdin.write(secret.encode() + b"\n")
        guest.stdin.flush()
        self.guests.append(guest)
        return guest

    def close(self) -> None:
        for guest in self.guests:
            assert guest.stdin is not None
            guest.stdin.close()
            guest.wait(10.0)


def apart(model: str, place: str, hosts: NextDoor | None = None, join_s: float = 600.0, **options: object) -> Cluster:
    config = EngineConfig(model=model, place=place, **options)  # type: ignore[arg-type]
    made = make_place(place)
    return Cluster(made, configs_of(config, made), Guests(hosts or NextDoor(), join_s))

"""Ray as launcher: the nodes of a Ray cluster as Hosts of guests.py, a small actor for every engine (keeper.py).

Ray starts workers and says when they end. Requests, answers, keys and values never pass through it: only the strings of
Keeper do.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ridgeline.kit.errors import UserError

from .handshake import read_address
from .keeper import Keeper

START_S = 120.0  # for Ray to start an actor
ANSWER_S = 5.0  # for a Ray cluster to be reached at all
ENDED = 75  # of a worker whose keeper is gone: it ends with it (worker.ORPHANED)


@dataclass(frozen=True, slots=True)
class RayNode:
    """cpus: as Ray counts them. where: in words."""

    id: str
    cpus: int
    where: str


class RayGuest:
    """A worker that a keeper watches."""

    def __init__(self, ray: Any, keeper: Any, pid: int, where: str) -> None:
        self._ray, self._keeper = ray, keeper
        self.pid, self.where = pid, where
        self._code: int | None = None
        self._has_ended = threading.Event()
        threading.Thread(target=self._watch, name=f"ridgeline-keeper-{pid}", daemon=True).start()

    def poll(self) -> int | None:
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        if not self._has_ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"the worker {self.where}", timeout or 0.0)
        return ENDED if self._code is None else self._code

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # whatever Ray says: it is gone then
            self._keeper.kill.remote()
            self._ray.kill(self._keeper)

    def _watch(self) -> None:
        try:
            self._code = int(self._ray.get(self._keeper.wait.remote()))
        except Exception:  # the actor or its node has died, or we have left the Ray cluster
            self._code = ENDED
        self._has_ended.set()
        with contextlib.suppress(Exception):  # its node's CPUs are free again
            self._ray.kill(self._keeper)


class RayHosts:
    """Engines are spread over the nodes in turn, and stay where they are while that node lives."""

    def __init__(self, address: str, engines: Sequence[str]) -> None:
        """address: of the Ray cluster, HOST:PORT, or "auto" for the one that runs here. engines: their names.
        UserError without Ray or without a cluster."""
        self._ray = joined(address)
        self.address = str(self._ray.util.get_node_ip_address())
        self._lock = threading.Lock()
        self._guests: list[RayGuest] = []
        self._at: dict[str, RayNode] = {}
        for engine in engines:
            self._at[engine] = self._choose()

    def cpus(self, engine: str) -> int:
        """It may use, its node's shared out evenly."""
        node = self._at[engine]
        return max(1, node.cpus // sum(other == node for other in self._at.values()))

    def start(self, name: str, call: str, secret: str, threads: int) -> RayGuest:
        node = self._node_of(name.rpartition(".")[0])
        if node.cpus < threads:
            raise UserError(
                f"{name} wants {threads} threads, and {node.where} has {node.cpus} CPUs. Give fewer threads=."
            )
        affinity = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        actor = self._ray.remote(num_cpus=threads, max_restarts=0, max_concurrency=4)(Keeper)
        keeper = actor.options(scheduling_strategy=affinity(node_id=node.id, soft=False)).remote()
        try:
            pid, host = self._ray.get(keeper.start.remote(call, name, secret), timeout=START_S).split(" ", 1)
        except Exception as error:
            with contextlib.suppress(Exception):  # it may never have been
                self._ray.kill(keeper)
            raise UserError(self._why(name, node, threads, error)) from error
        guest = RayGuest(self._ray, keeper, int(pid), f"{node.where} ({host})")
        with self._lock:
            self._guests.append(guest)
        return guest

    def close(self) -> None:
        with self._lock:
            guests, self._guests = self._guests, []
        for guest in guests:
            if guest.poll() is None:
                guest.kill()

    # -- inside

    def _nodes(self) -> Iterator[RayNode]:
        for node in self._ray.nodes():
            cpus = int(node["Resources"].get("CPU", 0)) if node["Alive"] else 0
            if cpus:
                shown = f"on Ray's node {node['NodeID'][:8]} at {node['NodeManagerAddress']}"
                yield RayNode(str(node["NodeID"]), cpus, shown)

    def _choose(self) -> RayNode:
        """The one with the fewest engines; of equals the largest."""
        nodes = list(self._nodes())
        if not nodes:
            raise UserError("no node of the Ray cluster has CPUs. Start one with `ray start --address=HOST:PORT`.")
        taken = [node.id for node in self._at.values()]
        return min(nodes, key=lambda node: (taken.count(node.id), -node.cpus, node.id))

    def _node_of(self, engine: str) -> RayNode:
        """Where it was, or another one when that is gone."""
        with self._lock:
            node = self._at.pop(engine, None)
            if node is None or node.id not in {one.id for one in self._nodes()}:
                node = self._choose()
            self._at[engine] = node
            return node

    def _why(self, name: str, node: RayNode, threads: int, error: Exception) -> str:
        if "No module named" in str(error):
            return (
                f"{name}, {node.where}: Ray's Python cannot import Ridgeline there. Install the same version of "
                "ridgeline on every node, and start Ray again."
            )
        if type(error).__name__ == "GetTimeoutError":
            return (
                f"{name}, {node.where}: Ray has not started it within {START_S:.0f} s. It needs {threads} of "
                f"{node.cpus} CPUs there; others may hold them (`ray status`)."
            )
        return f"{name}, {node.where}: Ray could not start it: {error}"


def joined(address: str) -> Any:
    """The module ray, this process a driver of the cluster at that address."""
    ray: Any = None
    with contextlib.suppress(ImportError):
        ray = importlib.import_module("ray")
    if not hasattr(ray, "is_initialized"):  # a mere directory of that name may be in the way
        raise UserError(
            "launcher=ray needs Ray, which is not installed here: pip install 'ridgeline[ray]', on every machine."
        )
    if ray.is_initialized():
        return ray
    cure = "Start one with `ray start --head` here and `ray start --address=HOST:PORT` on the other machines"
    if address != "auto":
        try:
            socket.create_connection(read_address(address), ANSWER_S).close()
        except OSError as error:
            raise UserError(f"no Ray cluster answers at {address} ({error}). {cure}, or correct address=.") from error
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        shown = "this machine" if address == "auto" else address
        raise UserError(f"the Ray cluster of {shown} could not be joined: {str(error).rstrip('.')}. {cure}.") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray takes it
    return ray

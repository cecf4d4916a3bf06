"""Cluster: prefill and decode engines, each its own process, seen as one engine. Starts, links and watches them.

An engine that dies is started again, and what it was doing is computed again from the tokens that were delivered; when
none is left, its requests end with an error that says so. Nobody waits for ever, nobody is lost.
"""
# size: one owner of the engines, their links and the requests on their way, under one lock

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ridgeline.engine.client import Deliver, EngineClient, EngineStopped
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import Place
from ridgeline.kit.errors import CapacityError, RidgelineError, UserError
from ridgeline.state.event import HANDED_ON, RETURNED, STAYED, TokenEvent
from ridgeline.state.messages import EngineFacts, Pulse
from ridgeline.state.request import Request

from .balance import Balance
from .door import Greeting
from .journey import Journey
from .launcher import Launcher
from .router import ROUTERS, Router

PREFILL, DECODE = KINDS = ("prefill", "decode")


@dataclass(slots=True, eq=False)
class Node:
    """One engine. client None: not running (now)."""

    name: str
    kind: str
    config: EngineConfig
    restarts_left: int
    client: EngineClient | None = None
    is_starting: bool = False
    born: int = 0  # how often it was started
    stillborn: int = 0  # of these starts, the one that had ended before anybody could know it

    @property
    def is_hopeless(self) -> bool:
        return self.client is None and not self.is_starting


def names_of(place: Place) -> dict[str, str]:
    """Its engines by name, and of which kind they are."""
    counts = zip(KINDS, place.engines, strict=True)
    return {f"{kind}-{number}": kind for kind, count in counts for number in range(count)}


class Cluster:
    """Has what EngineClient has: facts, submit_to, cancel, account, close. Thread-safe."""

    def __init__(
        self, place: Place, configs: Mapping[str, EngineConfig], launcher: Launcher, balance: Balance | None = None
    ) -> None:
        """configs: of the engines of each of KINDS. balance: who moves between decode engines; None: nobody."""
        self.place, self._launcher, self._balance = place, launcher, balance
        self._lock = threading.RLock()
        self._turn = threading.Lock()  # one links at a time
        self._journeys: dict[str, Journey] = {}
        self._links: dict[tuple[str, str], int] = {}  # how often they were linked
        self.moved = 0  # times that a running request has changed its engine
        self._closed: RidgelineError | None = None
        # One end of an engine may cost two: its links break before it is known to be gone.
        self._most_attempts = 2 * sum(place.engines) * (place.restarts + 1) + 1
        self._routers: dict[str, Router] = {kind: ROUTERS[place.route]() for kind in KINDS}
        self._nodes = {
            name: Node(name, kind, configs[kind], place.restarts, is_starting=True)
            for name, kind in names_of(place).items()
        }
        try:
            self._start_all()
        except BaseException:
            self.close(timeout_s=0.0)
            raise
        self.facts = self._facts()

    # -- what an engine's client can do

    def submit_to(self, request: Request, deliver: Deliver) -> None:
        """As EngineClient.submit_to."""
        request.check(self.facts.vocabulary, self.facts.context)
        journey = Journey(request, deliver)
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if request.id in self._journeys:
                raise UserError(f"request id {request.id!r} is already in use; give every request its own id.")
            self._journeys[request.id] = journey
        self._send(journey)

    def cancel(self, request_id: str) -> None:
        """As EngineClient.cancel."""
        with self._lock:
            journey = self._journeys.get(request_id)
            if journey is None:
                return
            journey.is_cancelled = True
        self._cancel(journey)

    def account(self, kind: Any = dict[str, Any], *, reset: bool = False, timeout_s: float = 60.0) -> dict[str, Any]:
        """By the names of the engines, what each one's observer saw; engines that are down are left out."""
        found = {}
        for name, client in self._running():
            with contextlib.suppress(EngineStopped):
                found[name] = client.account(kind, reset=reset, timeout_s=timeout_s)
        return found

    def close(self, timeout_s: float = 5.0) -> None:
        """As EngineClient.close, for all."""
        with self._lock:
            self._closed = self._closed or EngineStopped("the engines were closed.")
            nodes = list(self._nodes.values())
            journeys, self._journeys = list(self._journeys.values()), {}
        for node in nodes:
            if node.client is not None:
                node.client.close(timeout_s)
        self._launcher.close()
        for journey in journeys:
            journey.deliver(self._closed)

    @property
    def pids(self) -> dict[str, int]:
        """Of the engines that run, by name."""
        return {name: client.pid for name, client in self._running()}

    @property
    def pulse(self) -> Pulse | None:
        """As EngineClient.pulse: all engines together, as old as the oldest sign of life."""
        told = [client.pulse for _, client in self._running()]
        known = [pulse for pulse in told if pulse is not None]
        if not known or len(known) < len(told):
            return None
        oldest = min(pulse.at_s for pulse in known)
        counts = zip(*(msgspec.structs.astuple(pulse)[1:-1] for pulse in known), strict=True)
        whole = Pulse(oldest, *(sum(column) for column in counts))
        return msgspec.structs.replace(whole, map=b"".join(pulse.map for pulse in known))

    def ask_pulse(self) -> None:
        for _, client in self._running():
            client.ask_pulse()

    @property
    def failure(self) -> RidgelineError | None:
        """Why no engine will answer any more; None while one may."""
        with self._lock:
            return self._closed or self._hopeless()

    def links(self) -> dict[tuple[str, str], int]:
        """How often each pair of engines was linked."""
        with self._lock:
            return dict(self._links)

    # -- requests

    def _send(self, journey: Journey) -> None:
        """Route it and hand it over; with nobody there now, it waits until somebody is, or ends when nobody will be."""
        with self._lock:
            if journey.is_over or self._journeys.get(journey.request.id) is not journey:
                return
            if journey.prefill:
                return  # another thread has: who waits is sent by whoever hears of an engine first
            pair = [self._choose(kind) for kind in KINDS]
            if None in pair:
                hopeless = self._hopeless()
                if hopeless is None:
                    return
                self._journeys.pop(journey.request.id, None)
                failed: RidgelineError = hopeless
            else:
                prefill, decode = (node for node in pair if node is not None)
                link = f"{decode.name}/{self._links[prefill.name, decode.name]}"
                journey.begin(prefill.name, decode.name, link)
                name, asked, known = journey.name, journey.asked(), tuple(journey.known)
                clients = (prefill.client, decode.client)
        if None in pair:
            journey.deliver(failed)
            return
        first, second = clients
        try:
            if first is not None and second is not None:  # else: died just now, and _died sends it again
                second.expect(name, lambda event: self._heard(journey, name, event, decode.name))
                first.submit_to(
                    asked, lambda event: self._heard(journey, name, event, prefill.name), known=known, to=link
                )
        except EngineStopped:
            pass  # likewise
        with self._lock:
            is_stale = journey.name != name
        if is_stale:  # it was sent again before these two knew of it
            _forgotten(name, clients)
        if journey.is_cancelled:
            self._cancel(journey)

    def _choose(self, kind: str) -> Node | None:
        """The router's word among those that run."""
        nodes = {node.name: node for node in self._nodes.values() if node.kind == kind and node.client is not None}
        if not nodes:
            return None
        loads = dict.fromkeys(nodes, 0)
        for journey in self._journeys.values():
            at = (journey.decode if kind == DECODE else "") if journey.has_left else getattr(journey, kind)
            if at in loads:
                loads[at] += journey.load()
        return nodes[self._routers[kind].choose(loads)]

    def _hopeless(self) -> EngineStopped | None:
        for kind in KINDS:
            nodes = [node for node in self._nodes.values() if node.kind == kind]
            if all(node.is_hopeless for node in nodes):
                return EngineStopped(
                    f"no {kind} engine is left: {len(nodes)} ended and were started again {self.place.restarts} times."
                )
        return None

    def _heard(self, journey: Journey, name: str, event: TokenEvent | RidgelineError, at: str) -> None:
        """An event of one of its engines, `at`, from that one's reader thread."""
        if isinstance(event, EngineStopped):
            return  # _died knows
        finish = event.finish if isinstance(event, TokenEvent) else None
        with journey.order:
            with self._lock:
                if journey.name != name or journey.is_over:
                    return
                engines = self._engines_of(journey)
                target, link = self._nodes.get(journey.target), journey.link
                if isinstance(event, RidgelineError):
                    journey.is_over = True
                    due: list[TokenEvent | RidgelineError] = [event]
                elif finish == "error" and at == journey.prefill:
                    journey.is_over = True
                    due = [CapacityError(event.error or "the decode engine refused it.")]
                else:
                    due = list(journey.take(event, at))
                if journey.is_over:
                    self._journeys.pop(journey.request.id, None)
                has_moved = finish == HANDED_ON and at != journey.prefill
                self.moved += has_moved
                is_lost = has_moved and not self._is_as_it_was(journey)
            if journey.is_over:
                for other, client in engines.items():
                    if other != at and client is not None:
                        client.forget(name)
            for one in due:
                journey.deliver(one)
        if finish == RETURNED:
            self._again(journey, name)
        elif isinstance(event, TokenEvent) and finish == STAYED and target is not None:
            self._not_moved(name, self._nodes[at], target, link if event.error else "")
        elif is_lost:
            self._restart(journey, name, tuple(engines.values()))
        elif journey.is_cancelled and journey.has_left and not journey.is_over:
            self._cancel(journey)
        elif self._balance is not None and isinstance(event, TokenEvent) and event.tokens:
            self._rebalance(self._balance)

    def _engines_of(self, journey: Journey) -> dict[str, EngineClient | None]:
        """Those that may know of it, by their names."""
        names = (journey.prefill, journey.decode, journey.target)
        return {at: self._nodes[at].client for at in names if at}

    # -- moves

    def _rebalance(self, balance: Balance) -> None:
        """After a token: whoever should go on elsewhere is told to."""
        with self._lock:
            capacities = {
                node.name: node.client.facts.kv_blocks * node.client.facts.block_tokens
                for node in self._nodes.values() if node.kind == DECODE and node.client is not None
            }  # fmt: skip
            moves = balance.look(self._journeys.values(), capacities)
            going = [(self._journeys[move.name], self._nodes[move.source], self._nodes[move.target]) for move in moves]
        for journey, source, target in going:
            self.move(journey.request.id, source.name, target.name)

    def move(self, request_id: str, source: str, target: str) -> bool:
        """Have a running request go on in another decode engine; False (and no change) when it is not there to be
        moved, or is moving already."""
        with self._lock:
            journey, near, far = self._journeys.get(request_id), self._nodes[source].client, self._nodes[target]
            client = far.client
            if journey is None or near is None or client is None or journey.is_over or journey.is_cancelled:
                return False
            if (
                journey.decode != source
                or journey.target
                or not journey.has_left
                or (source, target) not in self._links
            ):
                return False
            name, link = journey.name, f"{target}/{self._links[source, target]}"
            journey.move_to(target, far.born)
            journey.link = link
        try:
            client.expect(name, lambda event: self._heard(journey, name, event, target))
        except EngineStopped:  # it has ended just now
            with self._lock:
                if journey.name == name and journey.target == target:
                    journey.target = ""
            return False
        near.migrate(name, link)
        return True

    def _not_moved(self, name: str, source: Node, target: Node, broken: str) -> None:
        """It goes on where it was. The other engine may have taken it, if its word was lost: it forgets it."""
        _forgotten(name, (target.client,))
        if broken:
            self._link(source, target, broken)

    def _is_as_it_was(self, journey: Journey) -> bool:
        """Whether the engine it has moved to lives, and was not started again meanwhile."""
        node = self._nodes[journey.decode]
        return node.client is not None and node.born == journey.target_born

    def _again(self, journey: Journey, name: str) -> None:
        """The way it went has broken: link its engines again if they still live, and send it once more."""
        with self._lock:
            if journey.name != name or journey.is_over:
                return
            prefill, decode, link = self._nodes[journey.prefill], self._nodes[journey.decode], journey.link
            alive = (prefill.client, decode.client)
        if any(client is not None and not client.is_running for client in alive):
            return  # _died will know and send it again; until then the router would choose the dead one every time
        self._link(prefill, decode, link)
        self._restart(journey, name, alive)

    def _restart(self, journey: Journey, name: str, engines: tuple[EngineClient | None, ...]) -> None:
        """Another attempt; the engines that know of this one forget it."""
        with self._lock:
            if journey.name != name or journey.is_over:
                return
            journey.again()
            if journey.attempt > self._most_attempts:
                journey.is_over = True
                self._journeys.pop(journey.request.id, None)
        _forgotten(name, engines)
        if journey.is_over:
            tried = f"request {journey.request.id!r} was tried {journey.attempt} times"
            journey.deliver(EngineStopped(f"{tried}; its engines, or the way between them, ended each time."))
            return
        self._send(journey)

    def _cancel(self, journey: Journey) -> None:
        with self._lock:
            name = journey.name
            nodes = list(self._engines_of(journey).values())
            is_nowhere = not nodes and self._journeys.pop(journey.request.id, None) is not None
            journey.is_over = journey.is_over or is_nowhere
        if is_nowhere:  # it waits for an engine
            journey.deliver(TokenEvent(journey.request.id, (), 0.0, finish="cancelled"))
        for client in nodes:
            if client is not None:
                client.cancel(name)

    # -- engines

    def _running(self) -> list[tuple[str, EngineClient]]:
        with self._lock:
            return [(node.name, node.client) for node in self._nodes.values() if node.client is not None]

    def _start_all(self) -> None:
        """All at once; the first error of any."""
        errors: list[BaseException] = []

        def start(node: Node) -> None:
            try:
                self._bear(node)
            except BaseException as error:  # raised below, in the thread of whoever asked
                errors.append(error)

        threads = [threading.Thread(target=start, args=(node,)) for node in self._nodes.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        for node in self._nodes.values():
            if node.kind == DECODE:
                self._link_all(node)

    def _bear(self, node: Node) -> None:
        """Start the process of a node; it takes no requests before it is linked."""
        born = node.born = node.born + 1
        client = self._launcher.start(node.name, node.config, lambda error: self._died(node, born, error))
        with self._lock:
            node.client, node.is_starting = client, False
            is_late, is_dead = self._closed is not None, node.stillborn == born
        if is_late:
            client.close()
        elif is_dead:
            self._died(node, born, EngineStopped(f"{node.name} ended as soon as it was ready."))

    def _link_all(self, node: Node) -> None:
        """With all it may give to or take from: between kinds, and both ways between those that balance their load."""
        for other in list(self._nodes.values()):
            if other.kind != node.kind:
                prefill, decode = (node, other) if node.kind == PREFILL else (other, node)
                self._link(prefill, decode, "")
            elif other is not node and node.kind == DECODE and self.place.rebalance != "none":
                self._link(node, other, "")
                self._link(other, node, "")

    def _link(self, giver: Node, taker: Node, broken: str) -> None:
        """A fresh link between two, unless another thread has replaced the broken one already."""
        with self._turn:
            pair = (giver.name, taker.name)
            with self._lock:
                number = self._links.get(pair, 0)
                is_alive = giver.client is not None and taker.client is not None
                if not is_alive or (broken and broken != f"{taker.name}/{number}"):
                    return
                facts = self._engine_facts(taker)
                self._links[pair] = number + 1
            greeting = Greeting(
                f"{taker.name}/{number + 1}", gives=True, rate=self.place.rate, buffer=self.place.buffer,
                slot_bytes=facts.block_bytes,
            )  # fmt: skip
            self._launcher.link(giver.name, taker.name, greeting)

    def _engine_facts(self, node: Node) -> EngineFacts:
        if node.client is None:
            raise EngineStopped(f"{node.name} is not running.")
        return node.client.facts

    def _died(self, node: Node, born: int, error: RidgelineError) -> None:
        """From the reader thread of the engine that ended."""
        with self._lock:
            if self._closed is not None or born != node.born:
                return
            if node.client is None:
                node.stillborn = born
                return
            self._launcher.forget(node.name)
            dead, node.client = node.client, None
            node.is_starting = node.restarts_left > 0
            node.restarts_left -= node.is_starting
            met = [
                one for one in self._journeys.values()
                if one.decode == node.name or (one.prefill == node.name and not one.has_left)
            ]  # fmt: skip
            names = [one.name for one in met]
            engines = [tuple(self._engines_of(one).values()) for one in met]
        dead.close(timeout_s=0.0)
        if node.is_starting:
            threading.Thread(
                target=self._revive, args=(node,), name=f"ridgeline-revive-{node.name}", daemon=True
            ).start()
        for one, name, pair in zip(met, names, engines, strict=True):
            self._restart(one, name, pair)
        if not node.is_starting:
            self._send_waiting()

    def _revive(self, node: Node) -> None:
        while True:
            try:
                self._bear(node)
                break
            except RidgelineError:
                with self._lock:
                    if self._closed is not None or node.restarts_left <= 0:
                        node.is_starting = False
                        break
                    node.restarts_left -= 1
        if node.client is not None:
            self._link_all(node)
        self._send_waiting()

    def _send_waiting(self) -> None:
        with self._lock:
            waiting = [one for one in self._journeys.values() if not one.prefill]
        for journey in waiting:
            self._send(journey)

    def _facts(self) -> EngineFacts:
        """Of all engines as one: what a request may be, threads of one engine, bytes of all."""
        facts = [client.facts for _, client in self._running()]
        least = min(facts, key=lambda one: one.context)
        return msgspec.structs.replace(
            least,
            threads=min(one.threads for one in facts),
            resident_weight_bytes=sum(one.resident_weight_bytes for one in facts),
            arena_bytes=sum(one.arena_bytes for one in facts),
            kv_bytes=sum(one.kv_bytes for one in facts),
            kv_blocks=sum(one.kv_blocks for one in facts),
            load_s=max(one.load_s for one in facts),
            spec=facts[-1].spec,
        )


def _forgotten(name: str, clients: Iterable[EngineClient | None]) -> None:
    """Nobody waits for this attempt any more. clients: as they were when read, for another thread may hear meanwhile
    that one has ended."""
    for client in clients:
        if client is not None:
            client.cancel(name)
            client.forget(name)

"""Two tiny engines in this process, linked as the cluster links them, driven step by step."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import Any

from ridgeline.cluster.children import introduce
from ridgeline.cluster.door import DescriptorDoor, Greeting
from ridgeline.cluster.exchange import Exchange
from ridgeline.engine.engine import Engine
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

from ..engine.tiny import TinyEngine

LINK = "second/1"


class Pair:
    """first computes prompts, second goes on. events: everything both said, in order."""

    def __init__(self, model: str, *, kind: str = "shm", rate: float = 0.0, buffer: int = 1 << 26, **options: Any):
        apart = {name: options.pop(name) for name in ("first", "second") if name in options}
        doors, theirs = zip(*(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)), strict=True)
        self.doors, self.kind = doors, kind
        self.engines: list[Engine] = [
            TinyEngine(model, **(options | apart.get(name, {}))).engine for name in ("first", "second")
        ]
        self.exchanges = [
            Exchange(engine, DescriptorDoor(door)) for engine, door in zip(self.engines, theirs, strict=True)
        ]
        self.greeting = Greeting(LINK, gives=True, slot_bytes=self.block_bytes, rate=rate, buffer=buffer)
        self.events: list[TokenEvent] = []

    @property
    def block_bytes(self) -> int:
        kept = self.engines[0].kept
        assert kept is not None
        return sum(kept.block_bytes)

    def link(self) -> None:
        introduce(*self.doors, self.greeting, self.kind)

    def add(self, request: Request, known: tuple[int, ...] = ()) -> None:
        self.engines[0].add(request, known=known, hands_on=True)
        self.exchanges[0].send_on(request.id, LINK)

    def turn(self, which: Iterable[int] = (0, 1)) -> None:
        for number in which:
            engine, exchange = self.engines[number], self.exchanges[number]
            self.events += exchange.turn()
            if engine.has_work:
                self.events += engine.step()
            engine.check()

    def until(self, is_done: Any, which: Iterable[int] = (0, 1), limit_s: float = 30.0) -> None:
        end = time.monotonic() + limit_s
        while not is_done():
            assert time.monotonic() < end, [event for event in self.events if event.finish]
            self.turn(which)
            time.sleep(0.0002)

    def run(self, requests: Iterable[Request]) -> dict[str, tuple[int, ...]]:
        """All to their end; ids by request."""
        asked = list(requests)
        for request in asked:
            self.add(request)
        self.until(lambda: self.ended() >= {request.id for request in asked})
        return {request.id: self.ids(request.id) for request in asked}

    def ended(self) -> set[str]:
        return {event.request for event in self.events if event.finish not in (None, "handed on")}

    def said(self, name: str) -> list[str]:
        return [event.finish for event in self.events if event.request == name and event.finish is not None]

    def ids(self, name: str) -> tuple[int, ...]:
        return tuple(token for event in self.events if event.request == name for token in event.tokens)

    def held(self) -> list[int]:
        """Blocks held by each engine."""
        return [sum(pool.held_blocks for pool in engine.scheduler.memory.pools) for engine in self.engines]  # type: ignore[attr-defined]

    def kept_aside(self) -> int:
        """Bytes that wait at the second engine."""
        return sum(self.engines[1].kept.store.nbytes.values())  # type: ignore[union-attr]

    def close(self) -> None:
        for exchange, engine in zip(self.exchanges, self.engines, strict=True):
            exchange.close()
            engine.close()
        for door in self.doors:
            door.close()

"""Taker: the sequences that come to an engine. A thread a link puts their blocks aside, in memory of a fixed budget;
the engine's loop adds a sequence once all of it is there and was checked, and only then says Taken.

Refuses a layout that is not the pool's, and what would never fit; breaks with a giver that sends what it may not.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ridgeline.engine.engine import Engine
from ridgeline.kit.errors import UserError
from ridgeline.memory.spans import blocks_for
from ridgeline.state.ports import KeptState
from ridgeline.state.transfer import Parcel

from .bell import Bell
from .link import Link
from .messages import Block, Drop, Go, Handover, Message, Open, Refused, Taken
from .wire import Bytes, LinkBroken

FIRST_KEY = 1 << 40  # far from the keys of tiers


class Budget:
    """Bytes that may be put aside. Whoever asks gets all it needs at once, in order: so nobody waits for a part that
    another holds. More than the whole budget is given when nothing else is aside."""

    def __init__(self, nbytes: int) -> None:
        self._left = self._all = nbytes
        self._waiting: deque[Coming] = deque()
        self._lock = threading.Lock()

    def ask(self, one: Coming) -> None:
        with self._lock:
            self._waiting.append(one)
        self._grant()

    def give_back(self, one: Coming) -> None:
        """It needs nothing (more)."""
        with self._lock:
            if one in self._waiting:
                self._waiting.remove(one)
            elif one.is_granted:
                self._left += one.nbytes
                one.is_granted = False
        self._grant()

    def _grant(self) -> None:
        granted = []
        with self._lock:
            while self._waiting and (self._waiting[0].nbytes <= self._left or self._left == self._all):
                one = self._waiting.popleft()
                self._left -= one.nbytes
                one.is_granted = True
                granted.append(one)
        for one in granted:
            one.end.say(Go(one.stream))


@dataclass(slots=True, eq=False)
class Coming:
    """One sequence on its way. blocks: [group][index], None: nothing of it is here yet. most: of each group that may
    come. there: bytes of each that are here, from its beginning."""

    end: TakingEnd
    stream: int
    tokens: int
    nbytes: int
    blocks: list[list[Bytes | None]]
    most: list[int]
    there: dict[tuple[int, int], int] = field(default_factory=dict)
    is_granted: bool = False
    handover: Handover | None = None
    first_key: int = 0

    def close_with(self, tokens: int, kept: KeptState) -> None:
        """It came with so many tokens, at most those announced. LinkBroken unless all of their blocks are here."""
        if not 0 < tokens <= self.tokens:
            raise LinkBroken(f"stream {self.stream} has {self.tokens} tokens, which is not what its request says")
        self.tokens, self.blocks = tokens, [group[: blocks_for(tokens)] for group in self.blocks]
        for number, group in enumerate(self.blocks):
            for index, block in enumerate(group):
                there = 0 if block is None else self.there[number, index]
                due = kept.block_bytes[number] if kept.holds(number, index, tokens) else 0
                if there != due:
                    raise LinkBroken(f"stream {self.stream} ended before all of it was there")


@dataclass(slots=True)
class Pools:
    """What comes must fit: the taker's own layout, and the most tokens of a sequence."""

    kept: KeptState
    context: int
    block_bytes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.block_bytes = self.kept.block_bytes

    def refuse(self, opened: Open) -> str:
        """Why this cannot be taken; "": it can."""
        if opened.layout != self.kept.layout or opened.block_bytes != self.block_bytes:
            return f"the state that comes is {opened.layout}; here it is {self.kept.layout}. Start both engines alike."
        if not 0 < opened.tokens <= self.context:
            return f"{opened.tokens} tokens cannot be taken; a sequence has 1 to {self.context} here."
        return ""


class TakingEnd:
    """One link, seen from the engine that takes. arrived: whole sequences, and the names of those that were dropped
    after they had arrived, in order, for the engine's loop."""

    def __init__(self, name: str, link: Link, pools: Pools, budget: Budget, bell: Bell) -> None:
        self.name, self._link, self._pools, self._budget, self._bell = name, link, pools, budget, bell
        self.arrived: deque[Coming | str] = deque()
        self.broken = ""
        self._coming: dict[int, Coming] = {}
        self._thread = threading.Thread(target=self._listen, name=f"ridgeline-take-{name}", daemon=True)
        self._thread.start()

    def say(self, message: Message) -> None:
        with contextlib.suppress(LinkBroken):  # the reading thread notices too
            self._link.send(message)

    def close(self) -> None:
        self._link.close()

    # -- the reading thread

    def _listen(self) -> None:
        try:
            while True:
                self._heard(self._link.receive(self._room))
        except LinkBroken as error:
            self.broken = str(error)
        self._link.close()
        for one in list(self._coming.values()):
            self._budget.give_back(one)
        self._bell.ring()

    def _room(self, message: Message, nbytes: int) -> Bytes:
        if not isinstance(message, Block):
            raise LinkBroken("a payload without a block")
        one = self._coming.get(message.stream)
        if one is None or not one.is_granted:
            raise LinkBroken(f"a block of stream {message.stream}, which was never let in")
        here = one.blocks[message.group] if message.group < len(one.blocks) else []
        is_new = 0 <= message.index < len(here) and here[message.index] is None
        count = sum(block is not None for block in here) + is_new
        if not 0 <= message.index < len(here) or count > one.most[message.group]:
            raise LinkBroken(f"block {message.index} of group {message.group} is none of stream {message.stream}'s")
        place, size = (message.group, message.index), self._pools.block_bytes[message.group]
        there, end = one.there.get(place, 0), message.offset + nbytes
        if not 0 <= message.offset <= there or end > size:
            raise LinkBroken(f"bytes {message.offset} to {end} of a block of {size} bytes, of which {there} are here")
        data = one.blocks[message.group][message.index]
        if data is None:
            data = one.blocks[message.group][message.index] = np.empty(size, np.uint8)
        one.there[place] = max(end, there)
        return data[message.offset : end]

    def _heard(self, message: Message) -> None:
        match message:
            case Open(stream, tokens):
                if stream in self._coming:
                    raise LinkBroken(f"stream {stream} was opened twice")
                if why := self._pools.refuse(message):
                    self.say(Refused(stream, why))
                    return
                count, sizes = blocks_for(tokens), self._pools.block_bytes
                most = [self._pools.kept.most(group, tokens) for group in range(len(sizes))]
                nbytes = sum(size * blocks for size, blocks in zip(sizes, most, strict=True))
                one = Coming(self, stream, tokens, nbytes, [[None] * count for _ in sizes], most)
                self._coming[stream] = one
                self._budget.ask(one)
            case Block():
                pass  # its payload is where _room said
            case Handover(stream, request, known):
                whole = self._coming.pop(stream, None)
                if whole is None:
                    raise LinkBroken(f"stream {stream} ended before all of it was there")
                whole.close_with(len(request.prompt) + len(known) - 1, self._pools.kept)
                whole.handover = message
                self.arrived.append(whole)
                self._bell.ring()
            case Drop(stream, request_id):
                if (gone := self._coming.pop(stream, None)) is not None:
                    self._budget.give_back(gone)
                else:  # it crossed our Taken
                    self.arrived.append(request_id)
                    self._bell.ring()
            case _:
                raise LinkBroken(f"a giver does not say {message}")


class Taker:
    """budget: bytes that may be put aside, all links together."""

    def __init__(self, engine: Engine, kept: KeptState, bell: Bell) -> None:
        self._engine, self._kept, self._bell = engine, kept, bell
        self._pools = Pools(kept, engine.facts.context)
        self._budget: Budget | None = None
        self._ends: list[TakingEnd] = []
        self._aside: dict[str, Coming] = {}  # added, its blocks not unpacked yet
        self._next_key = FIRST_KEY

    def meet(self, name: str, link: Link, buffer_bytes: int) -> None:
        """A link to an engine that gives."""
        self._budget = self._budget or Budget(buffer_bytes)
        self._ends.append(TakingEnd(name, link, self._pools, self._budget, self._bell))

    def turn(self) -> None:
        """Between steps: add what has arrived, forget what is unpacked."""
        for end in list(self._ends):
            while end.arrived:
                one = end.arrived.popleft()
                if isinstance(one, str):
                    self._engine.cancel(one)
                else:
                    self._add(end, one)
            if end.broken:
                self._ends.remove(end)
        for request_id, aside in list(self._aside.items()):
            sequence = self._engine.scheduler.find(request_id)
            if sequence is None or sequence.parcel is None:
                del self._aside[request_id]
                self._forget(aside)

    def close(self) -> None:
        for end in self._ends:
            end.close()

    # -- inside

    def _add(self, end: TakingEnd, one: Coming) -> None:
        if one.handover is None or end.broken:  # the giver takes it back
            self._give_back(one)
            return
        request, known = one.handover.request, one.handover.known
        one.first_key, self._next_key = self._next_key, self._next_key + len(one.blocks[0])
        for group, blocks in enumerate(one.blocks):
            for index, data in enumerate(blocks):
                if data is not None:
                    self._kept.adopt(group, one.first_key + index, data)
        try:
            self._engine.add(request, known=known, parcel=Parcel(one.first_key, one.tokens))
        except UserError as error:
            self._forget(one)
            end.say(Refused(one.stream, str(error)))
            return
        self._aside[request.id] = one
        end.say(Taken(one.stream))

    def _forget(self, one: Coming) -> None:
        for index in range(len(one.blocks[0])):
            self._kept.drop(one.first_key + index)
        self._give_back(one)

    def _give_back(self, one: Coming) -> None:
        one.blocks = []
        if self._budget is not None:
            self._budget.give_back(one)

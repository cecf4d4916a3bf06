"""Giver: the sequences that leave an engine, and the blocks of theirs that travel while the rest is still computed.

Reads the scheduler's progress between steps; a thread a link sends. Blocks stay the sequence's until the taker has
said Taken: only then the scheduler lets them go.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass

import msgspec

from ridgeline.engine.engine import Engine
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.spans import blocks_for
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.state.event import HANDED_ON, RETURNED, TokenEvent
from ridgeline.state.ports import KeptState
from ridgeline.state.sequence import Sequence

from .bell import Bell
from .link import Link
from .messages import Block, Drop, Go, Handover, Message, Open, Refused, Taken
from .wire import Bytes, LinkBroken


class GivingEnd:
    """One link, seen from the engine that gives. answers: what the taker said; broken: why the link is of no use."""

    def __init__(self, name: str, link: Link, bell: Bell) -> None:
        self.name, self.link = name, link
        self.answers: deque[Message] = deque()
        self.broken = ""
        self._bell = bell
        self._jobs: queue.SimpleQueue[tuple[Message, Bytes | None] | None] = queue.SimpleQueue()
        for work, what in ((self._send, "send"), (self._listen, "listen")):
            threading.Thread(target=work, name=f"ridgeline-{what}-{name}", daemon=True).start()

    def put(self, message: Message, payload: Bytes | None = None) -> None:
        """To be sent, in order."""
        self._jobs.put((message, payload))

    def close(self) -> None:
        self._jobs.put(None)
        self.link.close()

    def _send(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self.link.send(*job)
            except LinkBroken as error:
                return self._break(error)

    def _listen(self) -> None:
        try:
            while True:
                self.answers.append(self.link.receive(_nowhere))
                self._bell.ring()
        except LinkBroken as error:
            self._break(error)

    def _break(self, error: LinkBroken) -> None:
        self.broken = self.broken or str(error)
        self.link.close()
        self._jobs.put(None)
        self._bell.ring()


def _nowhere(message: Message, nbytes: int) -> Bytes:
    raise LinkBroken("a payload came from an engine that only takes")


@dataclass(slots=True)
class Leaving:
    """One sequence. sent: blocks on their way; preemptions: of the sequence when they were read."""

    request_id: str
    to: str
    stream: int
    sent: int = 0
    preemptions: int = 0
    is_open: bool = False
    is_granted: bool = False
    is_handed: bool = False


class Giver:
    """ends: by the name of the engine behind them."""

    def __init__(self, engine: Engine, kept: KeptState, bell: Bell) -> None:
        self._engine, self._kept, self._bell = engine, kept, bell
        self.ends: dict[str, GivingEnd] = {}
        self._leaving: dict[str, Leaving] = {}
        self._streams: dict[int, Leaving] = {}
        self._next = 0

    def meet(self, name: str, link: Link) -> None:
        """A link to an engine that takes."""
        self.ends[name] = GivingEnd(name, link, self._bell)

    def send_on(self, request_id: str, to: str) -> None:
        one = self._leaving[request_id] = Leaving(request_id, to, self._next)
        self._streams[self._next] = one
        self._next += 1

    def cancel(self, request_id: str) -> TokenEvent | None:
        one = self._leaving.get(request_id)
        if one is None or not self._engine.scheduler.has_parted(request_id):
            return None
        self._drop(one)
        self._engine.scheduler.let_go(request_id)
        return self._event(one, "cancelled")

    def turn(self) -> list[TokenEvent]:
        """Between steps: answers first, then what can be sent."""
        events: list[TokenEvent] = []
        for name, end in list(self.ends.items()):
            while end.answers:
                events += self._heard(end.answers.popleft())
            if end.broken:
                del self.ends[name]
                events += [self._give_up(one, end.broken) for one in list(self._leaving.values()) if one.to == name]
        for one in list(self._leaving.values()):
            self._go_on(one)
        return events

    def close(self) -> None:
        for end in self.ends.values():
            end.close()

    # -- inside

    def _heard(self, answer: Message) -> list[TokenEvent]:
        one = self._streams.get(answer.stream)
        if one is None:
            return []  # it was dropped meanwhile
        match answer:
            case Go():
                one.is_granted = True
                return []
            case Taken():
                self._engine.scheduler.let_go(one.request_id)
                self._forget(one)
                return [self._event(one, HANDED_ON)]
            case Refused(_, why):
                return [self._give_up(one, why, "error")]
        raise InvariantError(f"a taker does not say {answer}")

    def _give_up(self, one: Leaving, why: str, finish: str = RETURNED) -> TokenEvent:
        """Its blocks are free (or cached) again; somebody else decides what becomes of it."""
        scheduler = self._engine.scheduler
        if scheduler.has_parted(one.request_id):
            scheduler.let_go(one.request_id)
        else:
            self._engine.cancel(one.request_id)
        self._forget(one)
        return self._event(one, finish, why)

    def _go_on(self, one: Leaving) -> None:
        end, scheduler = self.ends.get(one.to), self._engine.scheduler
        sequence = scheduler.find(one.request_id)
        if sequence is None:  # it ended with this very token, or was cancelled
            self._drop(one)
            return
        if end is None:
            return  # not introduced yet
        has_parted = scheduler.has_parted(one.request_id)
        computed = sequence.tokens_computed
        if not one.is_open and (computed or has_parted):
            one.is_open = True
            tokens = sequence.tokens_known - has_parted
            end.put(Open(one.stream, tokens, self._kept.layout, self._kept.block_bytes))
        if sequence.preemptions != one.preemptions:  # what was sent may have been overwritten while it was read
            one.preemptions, one.sent = sequence.preemptions, 0
        if one.is_granted and not one.is_handed:
            self._send_blocks(one, end, sequence, blocks_for(computed) if has_parted else computed // BLOCK_TOKENS)
            if has_parted:
                one.is_handed = True
                request = msgspec.structs.replace(sequence.request, prompt_logprobs=None)  # scored here
                end.put(Handover(one.stream, request, tuple(sequence.tokens[sequence.tokens_prompt :])))

    def _send_blocks(self, one: Leaving, end: GivingEnd, sequence: Sequence, until: int) -> None:
        if until <= one.sent:
            return
        tables = self._engine.scheduler.memory.blocks_of(sequence)
        for index in range(one.sent, until):
            for group, table in enumerate(tables):
                end.put(Block(one.stream, group, index), self._kept.block(group, int(table[index])))
        one.sent = until

    def _drop(self, one: Leaving) -> None:
        end = self.ends.get(one.to)
        if one.is_open and end is not None:
            end.put(Drop(one.stream, one.request_id))
        self._forget(one)

    def _forget(self, one: Leaving) -> None:
        self._leaving.pop(one.request_id, None)
        self._streams.pop(one.stream, None)

    def _event(self, one: Leaving, finish: str, error: str | None = None) -> TokenEvent:
        return TokenEvent(one.request_id, (), self._engine.clock.now(), finish=finish, error=error)

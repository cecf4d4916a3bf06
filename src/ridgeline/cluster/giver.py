"""Giver: the sequences that leave an engine, and the blocks of theirs that travel while the rest is still computed.

Reads the scheduler's progress between steps; a thread a link sends, during a step what its first layers have left in
the blocks (stage.py). Blocks stay the sequence's until the taker has said Taken: only then the scheduler lets them go.
"""
# size: 17 short methods; one owner of what leaves, be it handed on or moved while it runs

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass

import msgspec

from ridgeline.decode.decoder import MODEL
from ridgeline.engine.engine import Engine
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.spans import blocks_for
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.state.event import HANDED_ON, RETURNED, STAYED, TokenEvent
from ridgeline.state.plan import StepPlan
from ridgeline.state.ports import KeptState
from ridgeline.state.sequence import Sequence

from .bell import Bell
from .link import Link
from .messages import Block, Drop, Go, Handover, Message, Open, Refused, Taken
from .stage import LEAST_STAGED, Stage
from .wire import Bytes, LinkBroken


class GivingEnd:
    """One link, seen from the engine that gives. answers: what the taker said; broken: why the link is of no use."""

    def __init__(self, name: str, link: Link, bell: Bell) -> None:
        self.name, self.link = name, link
        self.answers: deque[Message] = deque()
        self.broken = ""
        self.granted: set[int] = set()  # streams that the taker has room for
        self._bell = bell
        self._jobs: queue.SimpleQueue[tuple[Message, Bytes | None] | Stage | None] = queue.SimpleQueue()
        for work, what in ((self._send, "send"), (self._listen, "listen")):
            threading.Thread(target=work, name=f"ridgeline-{what}-{name}", daemon=True).start()

    @property
    def is_idle(self) -> bool:
        """Whether everything was taken from the queue: at most one message is still on its way."""
        return self._jobs.empty()

    def put(self, message: Message, payload: Bytes | None = None) -> None:
        """To be sent, in order."""
        self._jobs.put((message, payload))

    def put_staged(self, stage: Stage) -> None:
        """Parts of it as they become ready, until it is closed."""
        self._jobs.put(stage)

    def close(self) -> None:
        self._jobs.put(None)
        self.link.close()

    def _send(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                for message, payload in job.parts_ready() if isinstance(job, Stage) else (job,):
                    self.link.send(message, payload)
            except LinkBroken as error:
                return self._break(error)

    def _listen(self) -> None:
        try:
            while True:
                answer = self.link.receive(_nowhere)
                if isinstance(answer, Go):
                    self.granted.add(answer.stream)
                self.answers.append(answer)
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


MOVING_TOKENS = 64  # that one that moves may get on the way; then it is stopped, however little has arrived


@dataclass(slots=True)
class Leaving:
    """One sequence. sent: blocks on their way; preemptions: of the sequence when they were read. most: tokens of one
    that moves while it runs, by when it must have parted; 0: it parts with its next token, as was said when it came."""

    request_id: str
    to: str
    stream: int
    most: int = 0
    sent: int = 0
    preemptions: int = 0
    is_open: bool = False
    is_granted: bool = False
    is_handed: bool = False
    stage: Stage | None = None  # of the step under way


class Giver:
    """ends: by the name of the engine behind them."""

    def __init__(self, engine: Engine, kept: KeptState, bell: Bell) -> None:
        self._engine, self._kept, self._bell = engine, kept, bell
        self.ends: dict[str, GivingEnd] = {}
        self._leaving: dict[str, Leaving] = {}
        self._streams: dict[int, Leaving] = {}
        self._next = 0
        kept.watch(self._begin)

    def meet(self, name: str, link: Link) -> None:
        """A link to an engine that takes."""
        self.ends[name] = GivingEnd(name, link, self._bell)

    def send_on(self, request_id: str, to: str) -> None:
        one = self._leaving[request_id] = Leaving(request_id, to, self._next)
        self._streams[self._next] = one
        self._next += 1

    def migrate(self, request_id: str, to: str) -> TokenEvent | None:
        """Blocks first, while it runs; then it parts. STAYED at once when there is no such way."""
        scheduler = self._engine.scheduler
        sequence = scheduler.find(request_id)
        if sequence is None or request_id in self._leaving:
            return None  # it has ended, or is on its way: whoever asked hears of that
        if to not in self.ends:
            return TokenEvent(request_id, (), self._engine.clock.now(), finish=STAYED)
        self.send_on(request_id, to)
        one = self._leaving[request_id]
        one.most = min(sequence.tokens_known + MOVING_TOKENS, self._engine.facts.context)
        one.preemptions = sequence.preemptions
        return None

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
            self._end_stage(one)
            if one.most and not one.is_granted and self._has_come_far(one):
                self._drop(one)
                events.append(self._give_up(one, ""))  # there was no room for it in time
            else:
                self._go_on(one)
        return events

    def close(self) -> None:
        for one in list(self._leaving.values()):
            self._forget(one)
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
                return [self._give_up(one, "" if one.most else why, "error")]
        raise InvariantError(f"a taker does not say {answer}")

    def _give_up(self, one: Leaving, why: str, finish: str = RETURNED) -> TokenEvent:
        """Its blocks are free (or cached) again; somebody else decides what becomes of it. One that moves goes on here:
        STAYED, with an error if the way there broke."""
        scheduler = self._engine.scheduler
        if one.most:
            self._go_on_here(one)
            self._forget(one)
            return self._event(one, STAYED, why or None)
        if scheduler.has_parted(one.request_id):
            scheduler.let_go(one.request_id)
        else:
            self._engine.cancel(one.request_id)
        self._forget(one)
        return self._event(one, finish, why)

    def _go_on_here(self, one: Leaving) -> None:
        """If it has parted already it comes back as one that others had begun; what it left is mostly cached still."""
        scheduler = self._engine.scheduler
        scheduler.hand_on(one.request_id, False)
        if scheduler.has_parted(one.request_id) and (sequence := scheduler.find(one.request_id)) is not None:
            scheduler.let_go(one.request_id)
            request = msgspec.structs.replace(sequence.request, prompt_logprobs=None)
            self._engine.add(request, known=tuple(sequence.tokens[sequence.tokens_prompt :]))

    def _has_come_far(self, one: Leaving) -> bool:
        """Whether it soon has more tokens than were announced."""
        sequence = self._engine.scheduler.find(one.request_id)
        return sequence is not None and sequence.tokens_known + BLOCK_TOKENS >= one.most

    def _part_soon(self, one: Leaving, end: GivingEnd, sequence: Sequence) -> None:
        """It parts when all but the block it writes is sent, or when it gets no more room where it goes."""
        is_sent = one.is_granted and one.sent >= self._whole(sequence.tokens_computed) and end.is_idle
        if is_sent or self._has_come_far(one):
            self._engine.scheduler.hand_on(one.request_id, True)

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
            self._open(one, end, one.most or sequence.tokens_known - has_parted)
        if sequence.preemptions != one.preemptions:  # what was sent may have been overwritten while it was read
            one.preemptions, one.sent = sequence.preemptions, 0
        if one.is_granted and not one.is_handed:
            self._send_blocks(one, end, sequence, blocks_for(computed) if has_parted else self._whole(computed))
            if one.most and not has_parted:
                self._part_soon(one, end, sequence)
            if has_parted:
                one.is_handed = True
                request = msgspec.structs.replace(sequence.request, prompt_logprobs=None)  # scored here
                end.put(Handover(one.stream, request, tuple(sequence.tokens[sequence.tokens_prompt :])))

    def _open(self, one: Leaving, end: GivingEnd, tokens: int) -> None:
        one.is_open = True
        end.put(Open(one.stream, tokens, self._kept.layout, self._kept.block_bytes))

    def _begin(self, plan: StepPlan) -> None:
        """A step begins: what it will leave in blocks of those that leave may go while it still computes."""
        entries = {entry.sequence: entry for entry in plan.entries if entry.program == MODEL} if self._leaving else {}
        for one in self._leaving.values():
            end, sequence = self.ends.get(one.to), self._engine.scheduler.find(one.request_id)
            entry = entries.get(sequence.id) if sequence is not None else None
            if end is None or sequence is None or entry is None or one.most:
                continue
            if sequence.preemptions != one.preemptions:
                one.preemptions, one.sent = sequence.preemptions, 0
            if not one.is_open:
                self._open(one, end, sequence.tokens_known)
            computed = entry.start + len(entry.tokens)
            until = blocks_for(computed) if computed == sequence.tokens_known else self._whole(computed)
            if until - one.sent >= LEAST_STAGED:
                tables = [
                    [
                        int(table[index]) if self._kept.holds(group, index, computed) else -1
                        for index in range(one.sent, until)
                    ]
                    for group, table in enumerate(entry.blocks)
                ]
                one.stage = Stage(self._kept, end.granted, one.stream, one.sent, tables)
                end.put_staged(one.stage)

    def _end_stage(self, one: Leaving) -> None:
        """The step is over: what its stage has begun is ended in the ordinary way."""
        if one.stage is None:
            return
        stage, one.stage = one.stage, None
        end, left = self.ends.get(one.to), stage.close()
        if stage.is_begun and end is not None:
            for message, payload in left:
                end.put(message, payload)
            one.sent = stage.until

    def _whole(self, computed: int) -> int:
        """Blocks that are final while more is computed."""
        return computed // self._kept.grain * self._kept.grain // BLOCK_TOKENS

    def _send_blocks(self, one: Leaving, end: GivingEnd, sequence: Sequence, until: int) -> None:
        if until <= one.sent:
            return
        tables = self._engine.scheduler.memory.blocks_of(sequence)
        for index in range(one.sent, until):
            for group, table in enumerate(tables):
                if index >= len(table) or table[index] < 0:
                    continue  # what it would hold is in another group
                end.put(Block(one.stream, group, index), self._kept.block(group, int(table[index])))
        one.sent = until

    def _drop(self, one: Leaving) -> None:
        end = self.ends.get(one.to)
        if one.is_open and end is not None:
            end.put(Drop(one.stream, one.request_id))
        self._forget(one)

    def _forget(self, one: Leaving) -> None:
        if one.stage is not None:
            one.stage.close()
        if (end := self.ends.get(one.to)) is not None:
            end.granted.discard(one.stream)
        self._leaving.pop(one.request_id, None)
        self._streams.pop(one.stream, None)

    def _event(self, one: Leaving, finish: str, error: str | None = None) -> TokenEvent:
        return TokenEvent(one.request_id, (), self._engine.clock.now(), finish=finish, error=error)

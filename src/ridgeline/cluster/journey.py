"""Journey: one request on its way through two engines, as the cluster sees it. Owns the order of its events.

    prefill engine  --first token-->  [hand-off]  --others-->  decode engine  --[moves]-->  another decode engine
Events of the next may be read before the last of the one before; they wait. What an earlier attempt says is not heard.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import msgspec

from ridgeline.engine.client import Deliver
from ridgeline.state.event import HANDED_ON, RETURNED, STAYED, TokenEvent
from ridgeline.state.request import Request


@dataclass(slots=True, eq=False)
class Journey:
    """known: output tokens that were delivered. prefill, decode: names of its engines; "": none yet. link: the name of
    the way between them. has_left: the decode engine goes on with it. target: another one that it is moving to, "":
    none; target_born: which start of it. length: output tokens in the end, as last predicted. since: tokens it had when
    it came where it is."""

    request: Request
    deliver: Deliver
    known: list[int] = field(default_factory=list)
    attempt: int = 0
    prefill: str = ""
    decode: str = ""
    link: str = ""
    has_left: bool = False
    target: str = ""
    target_born: int = 0
    length: float = 0.0
    since: int = -(1 << 30)  # where it began it may leave at once
    moves: int = 0
    is_cancelled: bool = False
    is_over: bool = False
    order: threading.RLock = field(default_factory=threading.RLock)  # held while an event is taken and delivered
    _has_first: bool = False  # of this attempt
    _early: list[TokenEvent] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the engines call it: another name for every attempt."""
        return f"{self.request.id}~{self.attempt}" if self.attempt else self.request.id

    def asked(self) -> Request:
        """The request as an engine gets it in this attempt: what was scored is not scored again."""
        changes = {"prompt_logprobs": None} if self.known else {}
        return msgspec.structs.replace(self.request, id=self.name, **changes)

    def load(self) -> int:
        """Tokens it occupies: those it begins with and those it has."""
        return len(self.request.prompt) + len(self.known)

    def begin(self, prefill: str, decode: str, link: str) -> None:
        self.prefill, self.decode, self.link = prefill, decode, link

    def again(self) -> None:
        """Something on the way died: from the start, with the tokens that were delivered."""
        self.attempt += 1
        self.prefill = self.decode = self.link = self.target = ""
        self.has_left = self._has_first = False
        self._early.clear()

    def move_to(self, target: str, born: int) -> None:
        self.target, self.target_born = target, born

    def take(self, event: TokenEvent, at: str) -> list[TokenEvent]:
        """An event of this attempt; what is to be delivered now, in order. at: the engine that says it."""
        if self.is_over or event.finish == RETURNED or at not in (self.prefill, self.decode, self.target):
            return []
        if event.finish == STAYED:
            self.target = ""
            self._early.clear()
            return []
        due: list[TokenEvent] = []
        if event.finish == HANDED_ON:
            if at == self.prefill:
                self.has_left = True
                return []
            self.decode, self.target, self.since = self.target, "", len(self.known)
            self.moves += 1
        elif at == self.target or (at == self.decode and not self._has_first):
            self._early.append(event)
            return []
        else:
            due = [event]
            self._has_first = True
        if not self.target:
            due += self._early
            self._early.clear()
        for one in due:
            self.length = one.length or self.length
            self.known += one.tokens
            self.is_over = self.is_over or one.finish is not None
        return [msgspec.structs.replace(one, request=self.request.id) for one in due]

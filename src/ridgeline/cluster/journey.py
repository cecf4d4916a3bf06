"""Journey: one request on its way through two engines, as the cluster sees it. Owns the order of its events.

    prefill engine  --first token-->  [hand-off]  --all others-->  decode engine
Events of the second may be read before the last of the first; they wait. What an earlier attempt says is not heard.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ridgeline.engine.client import Deliver
from ridgeline.state.event import HANDED_ON, RETURNED, TokenEvent
from ridgeline.state.request import Request


@dataclass(slots=True, eq=False)
class Journey:
    """known: output tokens that were delivered. prefill, decode: names of its engines; "": none yet. link: the name of
    the way between them. has_left: the decode engine goes on with it."""

    request: Request
    deliver: Deliver
    known: list[int] = field(default_factory=list)
    attempt: int = 0
    prefill: str = ""
    decode: str = ""
    link: str = ""
    has_left: bool = False
    is_cancelled: bool = False
    is_over: bool = False
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
        self.prefill = self.decode = self.link = ""
        self.has_left = self._has_first = False
        self._early.clear()

    def take(self, event: TokenEvent, *, is_first: bool) -> list[TokenEvent]:
        """An event of this attempt; what is to be delivered now, in order. is_first: of the prefill engine."""
        if self.is_over or event.finish == RETURNED:
            return []
        if event.finish == HANDED_ON:
            self.has_left = True
            return []
        if not is_first and not self._has_first:
            self._early.append(event)
            return []
        due = [event]
        if is_first:
            self._has_first = True
            due += self._early
            self._early.clear()
        for one in due:
            self.known += one.tokens
            self.is_over = self.is_over or one.finish is not None
        return [msgspec.structs.replace(one, request=self.request.id) for one in due]

"""Shape: what both generating routes have in common about how an answer is written: names, usage, running totals.

Everything is collected as it streams, so that a whole answer and the pieces of a stream are made of the same parts.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Grammar, Request

from .answers import Account, CompletionDetails, PromptDetails, Usage
from .choice import Choice, Delta
from .events import DONE, ENCODER, frame
from .fields import Generation
from .served import Served

MARK = "\ue000 the text of a token \ue000"  # where a token's text goes in a frame that was made before


class Shape(ABC):
    """prompts: token ids of each; a choice's index is prompt x n + choice."""

    prefix = ""
    is_always_closed = False  # streams end with the closing chunk, asked for or not
    end = DONE

    def __init__(self, served: Served, ask: Generation, name: str, prompts: Sequence[tuple[int, ...]]) -> None:
        self.served, self.prompts = served, prompts
        self.id, self.created = f"{self.prefix}{name}", int(time.time())
        self.each = ask.n or 1
        self.asked = ask
        self.grammar: Grammar | None = None
        self.truncated: int | UnsetType = UNSET  # tokens of prompts that were cut off, as asked
        self.choices = [Choice(served.tokenizer, ask.stops) for _ in range(len(prompts) * self.each)]
        self._stencils: dict[int, tuple[bytes, bytes] | None] = {}

    @abstractmethod
    def requests(self, name: str, tenant: str) -> list[Request]:
        """What the engine is asked, choice by choice. Refusal for what it would not take."""

    @abstractmethod
    def opening(self) -> list[Any]:
        """Chunks before the first event."""

    @abstractmethod
    def chunks(self, index: int, delta: Delta, event: TokenEvent) -> Iterator[Any]:
        """Chunks of one event, the finish included."""

    def frames(self, index: int, delta: Delta, event: TokenEvent) -> bytes:
        """Chunks of one event, as they are sent. One that adds text and nothing else, as nearly all do, is put together
        from the bytes of another; never the first of a choice, which may hold more."""
        if index not in self._stencils:
            made = b"".join(map(frame, self.chunks(index, delta, event)))
            self._stencils[index] = self._stencil(index, event) if delta.finish is None else None
            return made
        parts = self._stencils[index]
        if parts is None or delta.finish is not None or delta.scored:
            return b"".join(map(frame, self.chunks(index, delta, event)))
        return parts[0] + ENCODER.encode(delta.text) + parts[1] if delta.text else b""

    @property
    def is_plain(self) -> bool:
        """Whether chunks of text differ in their text only."""
        return not (self.asked.return_token_ids or self.asked.wants_running_usage)

    def _stencil(self, index: int, event: TokenEvent) -> tuple[bytes, bytes] | None:
        """What stands before and after the text of a chunk; None where there is more to a chunk."""
        if not self.is_plain:
            return None
        chunks = [frame(chunk) for chunk in self.chunks(index, Delta(MARK, (), (), ()), event)]
        head, mark, tail = chunks[0].partition(ENCODER.encode(MARK)) if len(chunks) == 1 else (b"", b"", b"")
        return (head, tail) if mark else None

    def keep(self, index: int, delta: Delta, event: TokenEvent) -> bool:
        """As add; there is always room for more."""
        self.add(index, delta, event)
        return True

    @abstractmethod
    def closing(self, account: Account | UnsetType) -> Any:
        """The chunk with usage."""

    @abstractmethod
    def add(self, index: int, delta: Delta, event: TokenEvent) -> None:
        """Collect for the whole answer."""

    @abstractmethod
    def whole(self, account: Account | UnsetType) -> Any:
        """The answer that is not streamed."""

    def usage(self) -> Usage:
        """Prompts count once, however many choices; cached: what was there before the first of them."""
        prompt = sum(len(ids) for ids in self.prompts)
        completion = sum(choice.tokens for choice in self.choices)
        cached = sum(
            min(len(ids), min(choice.cached for choice in self.choices[place * self.each : (place + 1) * self.each]))
            for place, ids in enumerate(self.prompts)
        )
        reasoning = sum(choice.reasoning for choice in self.choices)
        return Usage(prompt, completion, prompt + completion, PromptDetails(cached), CompletionDetails(reasoning))

    def truncate(self) -> None:
        """Keep the end of every prompt, as `truncate_prompt_tokens` says; the answer tells how much went."""
        most = self.asked.truncate_prompt_tokens
        if most is not None:
            self.truncated = sum(max(0, len(ids) - most) for ids in self.prompts)
            self.prompts = [ids[-most:] for ids in self.prompts]

    @property
    def running(self) -> Usage | UnsetType | None:
        """`usage` of a chunk before the last."""
        if self.asked.wants_running_usage:
            return self.usage()
        return None if self.asked.wants_usage else UNSET

    def ids(self, tokens: Sequence[int]) -> list[int] | UnsetType:
        """`token_ids`, when they were asked for."""
        return list(tokens) if self.asked.return_token_ids else UNSET

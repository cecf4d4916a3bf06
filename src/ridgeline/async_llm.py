"""AsyncLLM: LLM for asyncio, part of the Python face. The same engine process; what blocks waits in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Self

from .answer import Completion, Piece
from .arguments import Message, Prompt
from .llm import LLM


class AsyncLLM:
    """LLM for asyncio: answers as async iterators."""

    def __init__(self, model: str = "smollm2-135m", **options: Any) -> None:
        self.llm = LLM(model, **options)

    async def stream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Piece]:
        """Pieces of one answer; leaving the loop early cancels the request."""
        pieces = self.llm.stream(prompt, **options)
        async for piece in _drained(pieces):
            yield piece

    async def stream_chat(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[Piece]:
        """As stream, through the chat template."""
        async for piece in _drained(self.llm.stream_chat(messages, **options)):
            yield piece

    async def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Completion]:
        return await asyncio.to_thread(self.llm.generate, prompts, **options)

    async def chat(self, messages: Sequence[Message], **options: Any) -> Completion:
        return await asyncio.to_thread(self.llm.chat, messages, **options)

    async def close(self) -> None:
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _drained(pieces: Iterator[Piece]) -> AsyncIterator[Piece]:
    """A blocking iterator, each step in a thread; closed when the reader goes away."""
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            await asyncio.to_thread(close)

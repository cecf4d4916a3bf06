"""Chat: /v1/chat/completions, whole and streamed, in the order of chunks that clients count on (SERVING §3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UnsetType
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.state.event import Scored, TokenEvent
from ridgeline.state.request import Request

from .answering import answer, begin_note, check_fields
from .answers import Account, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, Message
from .answers import Delta as WireDelta
from .asks import ChatRequest
from .choice import Delta, chat_logprobs
from .reading import parse
from .refusal import invalid, too_long
from .shape import Shape

DECODER = msgspec.json.Decoder(ChatRequest)


async def chat(request: HttpRequest) -> Response:
    """The endpoint."""
    served, body, note = await begin_note(request)
    ask = parse(DECODER, body)
    served.check_model(ask.model)
    check_fields(ask)
    if ask.top_logprobs is not None and not ask.logprobs:
        raise invalid("`top_logprobs` needs `logprobs: true`.", "top_logprobs")
    ids = await served.off_loop(lambda: served.encode_chat(ask, note))
    shape = ChatShape(served, ask, request.state.name, [ids])
    return await answer(request, shape, note)


class ChatShape(Shape):
    prefix = "chatcmpl-"
    asked: ChatRequest

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.parts: dict[int, list[Delta]] = {}

    @property
    def top(self) -> int | None:
        """Likeliest tokens beside each; None: no log-probabilities."""
        return (self.asked.top_logprobs or 0) if self.asked.logprobs else None

    def requests(self, name: str, tenant: str) -> list[Request]:
        (ids,), context = self.prompts, self.served.context
        given = [most for most in (self.asked.max_tokens, self.asked.max_completion_tokens) if most is not None]
        if len(ids) + min(given, default=1) > context:
            raise too_long(context, len(ids), min(given, default=0), "max_tokens" if given else "messages")
        most = min(given, default=context - len(ids))
        return self.served.requests(self.asked, name, ids, most, tenant, logprobs=self.top)

    # -- streamed

    def opening(self) -> list[Any]:
        first = WireDelta("assistant", "")
        return [self._chunk([ChatChunkChoice(index, first, None, None)]) for index in range(len(self.choices))]

    def chunks(self, index: int, delta: Delta, event: TokenEvent) -> Iterator[Any]:
        if delta.text or delta.scored or (delta.tokens and self.asked.return_token_ids):
            said = ChatChunkChoice(
                index, WireDelta(content=delta.text), self._logprobs(delta.scored), None, self.ids(delta.tokens)
            )
            yield self._chunk([said])
        if delta.finish is not None:
            yield self._chunk([ChatChunkChoice(index, WireDelta(), None, delta.finish)])

    def closing(self, account: Account | UnsetType) -> ChatChunk:
        chunk = self._chunk([])
        return msgspec.structs.replace(chunk, usage=self.usage(), account=account)

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            self.id, "chat.completion.chunk", self.created, self.served.name, self.served.fingerprint, choices,
            self.running,
        )  # fmt: skip

    # -- whole

    def add(self, index: int, delta: Delta, event: TokenEvent) -> None:
        self.parts.setdefault(index, []).append(delta)

    def whole(self, account: Account | UnsetType) -> ChatCompletion:
        choices = [self._choice(index) for index in range(len(self.choices))]
        return ChatCompletion(
            self.id, "chat.completion", self.created, self.served.name, choices, self.usage(), self.served.fingerprint,
            account,
        )  # fmt: skip

    def _choice(self, index: int) -> ChatChoice:
        parts = self.parts[index]
        scored = [one for part in parts for one in part.scored]
        tokens = [token for part in parts for token in part.tokens]
        message = Message("assistant", "".join(part.text for part in parts))
        return ChatChoice(index, message, self._logprobs(scored, True), parts[-1].finish or "stop", self.ids(tokens))

    def _logprobs(self, scored: Sequence[Scored], is_whole: bool = False) -> ChatLogprobs | None:
        if self.top is None or not (scored or is_whole):
            return None
        return chat_logprobs(self.served.tokenizer, scored, self.top)

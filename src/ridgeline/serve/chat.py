"""Chat: /v1/chat/completions, whole and streamed, in the order of chunks that clients count on (SERVING §3.3)."""
# size: ChatShape: streamed and whole from the same parts

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.perf.intervals import ClientNote
from ridgeline.state.event import Scored, TokenEvent
from ridgeline.state.request import Request
from ridgeline.text.hearing import Call, Calling, Hearing, Part, Said, Thinking, Thought

from .answering import answer, begin_note, check_fields, chosen
from .answers import (
    Account,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Message,
    WrittenCall,
    WrittenFunction,
)
from .answers import Delta as WireDelta
from .asks import ChatRequest
from .choice import Choice, Delta, chat_logprobs
from .constraint import Toolbox, chat_grammar, toolbox_of
from .reading import parse
from .refusal import invalid, too_long
from .served import Served
from .shape import Shape

DECODER = msgspec.json.Decoder(ChatRequest)
Shaped = TypeVar("Shaped", bound="ChatShape")


async def chat(request: HttpRequest) -> Response:
    """The endpoint."""
    body, note = await begin_note(request)
    ask = parse(DECODER, body)
    served = chosen(request, ask.model)
    check_fields(ask)
    if ask.top_logprobs is not None and not ask.logprobs:
        raise invalid("`top_logprobs` needs `logprobs: true`.", "top_logprobs")
    shape = await prepare(request, served, ask, note, ChatShape)
    return await answer(request, shape, note)


async def prepare(
    request: HttpRequest, served: Served, ask: ChatRequest, note: ClientNote, kind: type[Shaped]
) -> Shaped:
    """Everything before the engine: the prompt, and the grammar, judged. kind: ChatShape or one that is like it."""
    check_effort(served, ask)
    box = toolbox_of(ask, served.call_format)
    tools = box.tools if box is not None else ()
    ids, is_thinking = await served.off_loop(lambda: served.encode_chat(ask, note, tools))
    grammar, param = chat_grammar(ask, box, served.call_format, is_thinking=is_thinking)
    await served.check_grammar(grammar, param, note)
    shape = kind(served, ask, request.state.name, [ids])
    shape.truncate()
    shape.grammar = grammar
    shape.listen(box, is_thinking=is_thinking)
    return shape


def check_effort(served: Served, ask: ChatRequest) -> None:
    """`reasoning_effort` becomes a value of the template, when the template knows one."""
    effort = ask.reasoning_effort
    if effort is None:
        return
    if not served.efforts:
        raise invalid(
            "This model's chat template knows no effort; leave `reasoning_effort` out.", "reasoning_effort",
            "unsupported_parameter",
        )  # fmt: skip
    name = served.efforts[0]
    value: str | bool = effort if name == "reasoning_effort" else effort not in ("none", "minimal")
    ask.chat_template_kwargs = {name: value, **(ask.chat_template_kwargs or {})}


class ChatShape(Shape):
    prefix = "chatcmpl-"
    asked: ChatRequest

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.parts: dict[int, list[Delta]] = {}
        self.calls: dict[int, int] = {}  # of each choice so far
        self.hears = False

    def listen(self, box: Toolbox | None, *, is_thinking: bool) -> None:
        """What is written is taken apart where the model thinks or may call tools. Calls that a grammar writes have
        their marks, and what is beside them is none."""
        kind, is_free = self.served.call_format, self.grammar is None
        self.hears = box is not None or self.served.thinks
        if self.hears:
            self.choices = [
                Choice(self.served.tokenizer, self.asked.stops, hearing=Hearing(
                    Thinking(is_thinking) if self.served.thinks else None,
                    Calling(kind, box.names, may_lack_marks=is_free)
                    if box is not None and kind is not None else None,
                ))
                for _ in self.choices
            ]  # fmt: skip

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
        return self.served.requests(self.asked, name, ids, most, tenant, logprobs=self.top, grammar=self.grammar)

    # -- streamed

    @property
    def is_plain(self) -> bool:
        return super().is_plain and not self.hears

    def opening(self) -> list[Any]:
        first = WireDelta("assistant", "")
        return [self._chunk([ChatChunkChoice(index, first, None, None)]) for index in range(len(self.choices))]

    def chunks(self, index: int, delta: Delta, event: TokenEvent) -> Iterator[Any]:
        written = [one for part in self.heard(delta) for one in self._written(index, part)]
        if not written and (delta.scored or (delta.tokens and self.asked.return_token_ids)):
            written = [WireDelta(content="")]
        for place, one in enumerate(written):
            scored = self._logprobs(delta.scored) if place == 0 else None
            yield self._chunk([ChatChunkChoice(index, one, scored, None, self.ids(delta.tokens if place == 0 else ()))])
        if delta.finish is not None:
            yield self._chunk([ChatChunkChoice(index, WireDelta(), None, self.finish(index, delta.finish))])

    def heard(self, delta: Delta) -> tuple[Part, ...]:
        return delta.parts if self.hears else ((Said(delta.text),) if delta.text else ())

    def _written(self, index: int, part: Part) -> Iterator[WireDelta]:
        """A call is said in two pieces: that there is one, and its arguments."""
        if isinstance(part, Said):
            yield WireDelta(content=part.text)
        elif isinstance(part, Thought):
            yield WireDelta(reasoning_content=part.text)
        else:
            call = self.call(index, part)
            number = self.calls[index] - 1
            begun = msgspec.structs.replace(call, function=WrittenFunction(part.name, ""), index=number)
            yield WireDelta(tool_calls=[begun])
            yield WireDelta(tool_calls=[WrittenCall(WrittenFunction(arguments=part.arguments), index=number)])

    def call(self, index: int, part: Call) -> WrittenCall:
        """With the next id of this choice."""
        number = self.calls[index] = self.calls.get(index, 0) + 1
        name = f"call_{self.id.removeprefix(self.prefix)}{index:02x}{number:02x}"
        return WrittenCall(WrittenFunction(part.name, part.arguments), name, "function")

    def finish(self, index: int, reason: str) -> str:
        return "tool_calls" if self.calls.get(index) else reason

    def closing(self, account: Account | UnsetType) -> Any:
        chunk = self._chunk([])
        return msgspec.structs.replace(
            chunk, usage=self.usage(), account=account, truncated_prompt_tokens=self.truncated
        )

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self.id, created=self.created, model=self.served.name, system_fingerprint=self.served.fingerprint,
            choices=choices, usage=self.running,
        )  # fmt: skip

    # -- whole

    def add(self, index: int, delta: Delta, event: TokenEvent) -> None:
        self.parts.setdefault(index, []).append(delta)

    def whole(self, account: Account | UnsetType) -> ChatCompletion:
        choices = [self._choice(index) for index in range(len(self.choices))]
        return ChatCompletion(
            self.id, "chat.completion", self.created, self.served.name, choices, self.usage(), self.served.fingerprint,
            account, self.truncated,
        )  # fmt: skip

    def _choice(self, index: int) -> ChatChoice:
        parts = self.parts[index]
        scored = [one for part in parts for one in part.scored]
        tokens = [token for part in parts for token in part.tokens]
        heard = [one for part in parts for one in self.heard(part)]
        said = "".join(one.text for one in heard if isinstance(one, Said))
        thought = "".join(one.text for one in heard if isinstance(one, Thought))
        calls = [self.call(index, one) for one in heard if isinstance(one, Call)]
        message = Message("assistant", said or (None if calls else ""), None, calls or UNSET, thought or UNSET)
        finish = self.finish(index, parts[-1].finish or "stop")
        return ChatChoice(index, message, self._logprobs(scored, True), finish, self.ids(tokens))

    def _logprobs(self, scored: Sequence[Scored], is_whole: bool = False) -> ChatLogprobs | None:
        if self.top is None or not (scored or is_whole):
            return None
        return chat_logprobs(self.served.tokenizer, scored, self.top)

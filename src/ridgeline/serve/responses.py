"""Responses: /v1/responses, the newer shape before the same engine. A request becomes one of chat's, an answer items.

Whole and streamed answers are written by the same Writer, so they hold the same items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.state.event import TokenEvent
from ridgeline.text.hearing import Call, Part, Said, Thought

from .answering import answer, begin_note, chosen
from .answers import Account, TokenLogprob
from .asks import (
    CalledFunction,
    CalledTool,
    ChatMessage,
    ChatRequest,
    Function,
    NamedFunction,
    NamedTool,
    TextPart,
    Tool,
)
from .chat import ChatShape, prepare
from .choice import Delta
from .fields import NamedSchema, SchemaFormat
from .reading import parse
from .refusal import invalid
from .response_answers import (
    Incomplete,
    InputDetails,
    OutputItem,
    OutputPart,
    ResponseAnswer,
    ResponseEvent,
    ResponseText,
    ResponseUsage,
)
from .response_asks import Content, InputItem, ResponsesRequest

DECODER = msgspec.json.Decoder(ResponsesRequest)
KINDS = {Said: "message", Thought: "reasoning", Call: "function_call"}


async def responses(request: HttpRequest) -> Response:
    """The endpoint."""
    body, note = await begin_note(request)
    ask = parse(DECODER, body)
    served = chosen(request, ask.model)
    shape = await prepare(request, served, as_chat(ask), note, ResponseShape)
    shape.told(ask)
    return await answer(request, shape, note)


# -- a request as one of chat's


def as_chat(ask: ResponsesRequest) -> ChatRequest:
    """Refusal for items that lack what their type needs."""
    wants_logprobs = bool(ask.include) or ask.top_logprobs is not None
    choice = ask.tool_choice
    named = choice if choice is None or isinstance(choice, str) else NamedTool(
        type="function", function=NamedFunction(name=choice.name)
    )  # fmt: skip
    tools = [
        Tool(type="function", function=Function(
            name=one.name, description=one.description, parameters=one.parameters, strict=one.strict
        ))
        for one in ask.tools or ()
    ]  # fmt: skip
    return ChatRequest(
        model=ask.model, messages=messages_of(ask), stream=ask.stream, max_completion_tokens=ask.max_output_tokens,
        temperature=ask.temperature, top_p=ask.top_p, logprobs=wants_logprobs or None, top_logprobs=ask.top_logprobs,
        tools=tools or None, tool_choice=named, parallel_tool_calls=ask.parallel_tool_calls,
        reasoning_effort=ask.reasoning.effort if ask.reasoning is not None else None, response_format=_format(ask),
        prompt_cache_key=ask.prompt_cache_key, account=ask.account, chat_template_kwargs=ask.chat_template_kwargs,
    )  # fmt: skip


def _format(ask: ResponsesRequest) -> Any:
    wanted = ask.text.format if ask.text is not None else None
    schema = getattr(wanted, "schema", None)
    if schema is None:
        return wanted
    return SchemaFormat(json_schema=NamedSchema(name="schema", schema=schema))


def messages_of(ask: ResponsesRequest) -> list[ChatMessage]:
    """Calls that follow each other, and the text before them, are one message."""
    made: list[ChatMessage] = []
    if ask.instructions is not None:
        made.append(ChatMessage(role="system", content=ask.instructions))
    if isinstance(ask.input, str):
        return [*made, ChatMessage(role="user", content=ask.input)]
    thought: str | None = None
    for place, item in enumerate(ask.input):
        kind = item.type or "message"
        if kind == "reasoning":
            thought = _text(item.content or item.summary or "")
        elif kind == "function_call":
            call = _called(item, place)
            last = made[-1] if made else None
            if last is not None and last.role == "assistant":
                last.tool_calls = [*(last.tool_calls or ()), call]
            else:
                made.append(ChatMessage(role="assistant", tool_calls=[call], reasoning_content=thought))
            thought = None
        elif kind == "function_call_output":
            output = _needed(item.output, f"input[{place}].output")
            made.append(ChatMessage(
                role="tool", content=_text(output), tool_call_id=_needed(item.call_id, f"input[{place}].call_id")
            ))  # fmt: skip
        else:
            role = _needed(item.role, f"input[{place}].role")
            content = _parts(_needed(item.content, f"input[{place}].content"))
            own = thought if role == "assistant" else None
            made.append(ChatMessage(role=role, content=content, reasoning_content=own))
            thought = None if role == "assistant" else thought
    if not made:
        raise invalid("`input` holds thoughts and nothing else.", "input")
    return made


def _called(item: InputItem, place: int) -> CalledTool:
    where = f"input[{place}]"
    name, arguments = _needed(item.name, f"{where}.name"), _needed(item.arguments, f"{where}.arguments")
    return CalledTool(
        id=_needed(item.call_id, f"{where}.call_id"), function=CalledFunction(name=name, arguments=arguments)
    )


def _needed(value: Any, param: str) -> Any:
    if value is None:
        raise invalid(f"The field `{param}` is missing.", param)
    return value


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _parts(content: Content) -> str | list[TextPart]:
    return content if isinstance(content, str) else [TextPart(type="text", text=part.text) for part in content]


# -- an answer as items


class Writer:
    """Items, one after the other; every part of the answer gives the events that tell of it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.items: list[OutputItem] = []
        self._kind: type[Part] | None = None  # of the item that is open
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._number = 0

    def event(self, kind: str, **fields: Any) -> ResponseEvent:
        self._number += 1
        return ResponseEvent(type=f"response.{kind}", sequence_number=self._number - 1, **fields)

    def write(self, part: Part, logprobs: list[TokenLogprob]) -> Iterator[ResponseEvent]:
        if isinstance(part, Call):
            yield from self.end()
            yield from self._write_call(part)
            return
        if type(part) is not self._kind:
            yield from self.end()
            yield from self._open(type(part))
        self._texts.append(part.text)
        self._logprobs += logprobs
        more: dict[str, Any] = {"logprobs": logprobs} if isinstance(part, Said) else {}
        yield self.event(f"{self._word}.delta", **self._where, content_index=0, delta=part.text, **more)

    def end(self, status: str = "completed") -> Iterator[ResponseEvent]:
        """Close the item that is open."""
        if self._kind is None:
            return
        text, is_said = "".join(self._texts), self._kind is Said
        part = self._part(text)
        more: dict[str, Any] = {"logprobs": self._logprobs} if is_said else {}
        yield self.event(f"{self._word}.done", **self._where, content_index=0, text=text, **more)
        if is_said:
            yield self.event("content_part.done", **self._where, content_index=0, part=part)
        self.items[-1] = msgspec.structs.replace(self.items[-1], status=status, content=[part])
        yield self.event("output_item.done", output_index=len(self.items) - 1, item=self.items[-1])
        self._kind, self._texts, self._logprobs = None, [], []

    @property
    def _word(self) -> str:
        return "output_text" if self._kind is Said else "reasoning_text"

    @property
    def _where(self) -> dict[str, Any]:
        return {"output_index": len(self.items) - 1, "item_id": self.items[-1].id}

    def _part(self, text: str) -> OutputPart:
        if self._kind is Said:
            return OutputPart("output_text", text, [], self._logprobs)
        return OutputPart("reasoning_text", text)

    def _open(self, kind: type[Part]) -> Iterator[ResponseEvent]:
        self._kind, number = kind, len(self.items)
        if kind is Said:
            item = OutputItem("message", f"msg_{self._name}{number:02x}", "in_progress", "assistant", [])
        else:
            item = OutputItem("reasoning", f"rs_{self._name}{number:02x}", "in_progress", content=[], summary=[])
        self.items.append(item)
        yield self.event("output_item.added", output_index=number, item=item)
        if kind is Said:
            yield self.event("content_part.added", **self._where, content_index=0, part=self._part(""))

    def _write_call(self, part: Call) -> Iterator[ResponseEvent]:
        number = len(self.items)
        item = OutputItem(
            "function_call", f"fc_{self._name}{number:02x}", "in_progress", call_id=f"call_{self._name}{number:02x}",
            name=part.name, arguments="",
        )  # fmt: skip
        self.items.append(item)
        yield self.event("output_item.added", output_index=number, item=item)
        yield self.event("function_call_arguments.delta", **self._where, delta=part.arguments)
        yield self.event("function_call_arguments.done", **self._where, name=part.name, arguments=part.arguments)
        self.items[-1] = msgspec.structs.replace(item, status="completed", arguments=part.arguments)
        yield self.event("output_item.done", output_index=number, item=self.items[-1])


class ResponseShape(ChatShape):
    prefix = "resp_"
    is_always_closed, end = True, b""
    is_plain = False  # its events are numbered

    def told(self, ask: ResponsesRequest) -> None:
        """What was asked in its own shape."""
        self.given = ask
        self.writer = Writer(self.id.removeprefix(self.prefix))
        self.reason = ""
        self.scored: list[TokenLogprob] = []  # not written yet

    def opening(self) -> list[Any]:
        begun = self._answer("in_progress")
        return [self.writer.event("created", response=begun), self.writer.event("in_progress", response=begun)]

    def chunks(self, index: int, delta: Delta, event: TokenEvent) -> Iterator[Any]:
        scored = self._logprobs(delta.scored)
        self.scored += scored.content if scored is not None else []
        for part in self.heard(delta):
            yield from self._write(part)
        if delta.finish is not None:
            self.reason = delta.finish
            if self.scored or not self.writer.items:  # an answer of no words is one all the same
                yield from self._write(Said(""))
            yield from self.writer.end("incomplete" if self.reason == "length" else "completed")

    def _write(self, part: Part) -> Iterator[ResponseEvent]:
        """With the log-probabilities of tokens whose text had to wait."""
        logprobs, self.scored = (self.scored, []) if isinstance(part, Said) else ([], self.scored)
        yield from self.writer.write(part, logprobs)

    def closing(self, account: Account | UnsetType) -> ResponseEvent:
        answer = self.whole(account)
        return self.writer.event(str(answer.status), response=answer)

    def add(self, index: int, delta: Delta, event: TokenEvent) -> None:
        for _ in self.chunks(index, delta, event):
            pass

    def whole(self, account: Account | UnsetType) -> Any:
        return self._answer("incomplete" if self.reason == "length" else "completed", account)

    def _answer(self, status: Any, account: Account | UnsetType = UNSET) -> ResponseAnswer:
        ask, used = self.given, None
        if status != "in_progress":
            all_ = self.usage()
            used = ResponseUsage(
                all_.prompt_tokens, InputDetails(all_.prompt_tokens_details.cached_tokens), all_.completion_tokens,
                all_.completion_tokens_details, all_.total_tokens,
            )  # fmt: skip
        wanted = ask.text.format if ask.text is not None else None
        return ResponseAnswer(
            id=self.id, created_at=self.created, status=status, model=self.served.name, output=list(self.writer.items),
            incomplete_details=Incomplete("max_output_tokens") if status == "incomplete" else None,
            instructions=ask.instructions, max_output_tokens=ask.max_output_tokens,
            parallel_tool_calls=ask.parallel_tool_calls is not False, temperature=ask.temperature, top_p=ask.top_p,
            text=ResponseText({"type": "text"} if wanted is None else _said(wanted)), user=ask.user,
            tool_choice="auto" if ask.tool_choice is None else _said(ask.tool_choice),
            tools=[{"parameters": None, "strict": None, **_said(tool)} for tool in ask.tools or ()],
            metadata=ask.metadata or {}, usage=used, account=account,
        )  # fmt: skip


def _said(given: Any) -> Any:
    """As it was given, without what was not."""
    made = msgspec.to_builtins(given)
    return {name: value for name, value in made.items() if value is not None} if isinstance(made, dict) else made

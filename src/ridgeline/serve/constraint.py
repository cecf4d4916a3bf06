"""Constraint: the grammar that an answer must obey, made of what a request says: format, structured outputs, tools.

Nothing is ever dropped: what does not go together, or what the model cannot do, is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.state.request import Grammar
from ridgeline.text.grammar import check_schema
from ridgeline.text.hearing import CallFormat
from ridgeline.text.tools import after_thoughts, call_grammar

from .asks import ChatRequest, NamedTool, Tool
from .conversation import described
from .fields import MOST_SCHEMA, Generation, ObjectFormat, SchemaFormat
from .refusal import invalid

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Toolbox:
    """Tools that the model may call; must: and has to. is_single: at most one call. strict: names of tools whose calls
    are right also where the model may choose."""

    tools: tuple[dict[str, Any], ...]
    must: bool
    is_single: bool
    strict: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool["function"]["name"] for tool in self.tools)

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        return {tool["function"]["name"]: tool["function"]["parameters"] for tool in self.tools}


def toolbox_of(ask: ChatRequest, kind: CallFormat | None) -> Toolbox | None:
    """None: without tools, or none may be called. kind: how the model writes calls, None: it does not."""
    tools, param, choice = _tools(ask)
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("`tool_choice` needs `tools`.", "tool_choice")
        return None
    if kind is None:
        raise invalid("This model's chat template knows no tools; leave them out.", param, "unsupported_parameter")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise invalid(f"`{param}` names a function twice; names must differ.", param)
    for place, tool in enumerate(tools):
        _check(tool.function.parameters, f"{param}[{place}].function.parameters")
    if choice == "none":
        return None
    chosen = tools
    if isinstance(choice, str) and choice not in ("auto", "required"):
        chosen = [tool for tool in tools if tool.function.name == choice.removeprefix("=")]
        if not chosen:
            raise invalid(f"`tool_choice` names {choice[1:]!r}, which is not among the tools.", "tool_choice")
    is_named = chosen is not tools
    return Toolbox(
        tuple(described(tool) for tool in chosen), is_named or choice == "required",
        is_named or ask.parallel_tool_calls is False,
        frozenset(tool.function.name for tool in chosen if tool.function.strict),
    )  # fmt: skip


def _tools(ask: ChatRequest) -> tuple[list[Tool], str, str | None]:
    """Tools, the field they came in, and the choice: a word, or `=NAME`."""
    if ask.functions is not None or ask.function_call is not None:
        if ask.tools is not None or ask.tool_choice is not None:
            raise invalid("`functions` and `tools` do not go together; send `tools`.", "functions")
        called = ask.function_call
        choice = called if called is None or isinstance(called, str) else f"={called.name}"
        return [Tool(type="function", function=one) for one in ask.functions or ()], "functions", choice
    wanted = ask.tool_choice
    return ask.tools or [], "tools", f"={wanted.function.name}" if isinstance(wanted, NamedTool) else wanted


def grammar_of(ask: Generation) -> tuple[Grammar | None, str]:
    """Of the text of an answer, and the field that asks for it."""
    wanted, given = ask.response_format, ask.structured_outputs
    if isinstance(wanted, (ObjectFormat, SchemaFormat)):
        if given is not None:
            raise invalid("`response_format` and `structured_outputs` do not go together.", "structured_outputs")
        if isinstance(wanted, ObjectFormat):
            return _schema(ANY_OBJECT), "response_format"
        param = "response_format.json_schema.schema"
        _check(wanted.json_schema.schema, param)
        return _schema(ANY_OBJECT if wanted.json_schema.schema is None else wanted.json_schema.schema), param
    if given is None:
        return None, ""
    found = {name: value for name in given.__struct_fields__ if (value := getattr(given, name)) not in (None, False)}
    if len(found) != 1:
        raise invalid("`structured_outputs` takes exactly one constraint.", "structured_outputs")
    (name, value), param = next(iter(found.items())), f"structured_outputs.{next(iter(found))}"
    if name in ("json", "json_object"):
        schema = ANY_OBJECT if name == "json_object" else value
        _check(schema, param)
        return _schema(schema), param
    if name == "choice":
        return Grammar("choice", msgspec.json.encode(value).decode()), param
    return Grammar("regex" if name == "regex" else "lark", value), param


def chat_grammar(
    ask: ChatRequest, box: Toolbox | None, kind: CallFormat | None, *, is_thinking: bool
) -> tuple[Grammar | None, str]:
    """With tools beside it. is_thinking: the prompt ends inside thoughts."""
    grammar, param = grammar_of(ask)
    try:
        if box is not None and kind is not None and (box.must or box.strict or grammar is not None):
            if grammar is not None and not box.must:
                if grammar.kind != "json_schema":
                    raise invalid(f"`{param}` and `tools` go together only for JSON schemas.", param)
                instead: Mapping[str, Any] | None = msgspec.json.decode(grammar.text)
            else:
                instead = None
            may_talk = not box.must and instead is None
            schemas = box.schemas
            if may_talk:
                schemas = {name: one if name in box.strict else ANY_OBJECT for name, one in schemas.items()}
            grammar = call_grammar(kind, schemas, is_single=box.is_single, instead=instead, may_talk=may_talk)
            param = "tools"
        if grammar is not None and is_thinking:
            grammar = after_thoughts(grammar)
    except UserError as error:
        raise invalid(f"`{param}`: {error}", param, "grammar_unenforceable") from None
    return grammar, param


def _schema(schema: Mapping[str, Any]) -> Grammar:
    return Grammar("json_schema", msgspec.json.encode(schema).decode())


def _check(schema: Mapping[str, Any] | None, param: str) -> None:
    """Length and depth; whether it can be enforced is found out elsewhere."""
    if schema is None:
        return
    try:
        check_schema(schema)
    except UserError as error:
        raise invalid(f"`{param}`: {error}", param, "grammar_unenforceable") from None
    if (size := len(msgspec.json.encode(schema))) > MOST_SCHEMA:
        raise invalid(f"`{param}` has {size} bytes; the limit is {MOST_SCHEMA}.", param)

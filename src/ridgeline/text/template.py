"""Chat templates: Jinja in a sandbox, with a budget on loops, calls and text, so a hostile one ends in a UserError.

Environment and functions are those transformers gives (trim_blocks, tojson, strftime_now, raise_exception). An explicit
system message with empty content means *no system turn at all*, even where the template would insert its own (SmolLM2
and Qwen2.5 do): what the template renders for that message alone is taken off the front again.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ridgeline.kit.errors import UserError

MAX_TEMPLATE_CHARACTERS = 1 << 18
MAX_STEPS = 200_000  # loop turns and calls of one rendering; real templates need about ten a message
MAX_TEXT = 1 << 24  # characters of the result, and of any string made on the way
MAX_MESSAGES = 10_000
BUDGET = "ridgeline_budget"
WIDENING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "translate"})
LONG_WIDTH = re.compile(r"\d{4}|\{[^}]*\{")  # in a format string: a width beyond 999, or one given by a value

Message = Mapping[str, Any]


class SpecialTokens(Protocol):
    """What a template needs of a tokenizer (text.tokenizer.Tokenizer)."""

    bos: int | None
    eos: tuple[int, ...]

    def shield(self, text: str) -> str: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str: ...


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    tokenizer: SpecialTokens,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **values: Any,
) -> str:
    """The conversation as one string for `tokenizer.encode(..., add_bos=False, special=True)`.

    messages: role and content (str) each. Contents are shielded: spellings of special tokens in them stay plain text.
    UserError for ill-formed messages, a broken template, and one that runs too long.
    """
    return ChatTemplate(template).render(
        messages, tokenizer=tokenizer, add_generation_prompt=add_generation_prompt, tools=tools, **values
    )


class ChatTemplate:
    """A compiled template; `render` as often as needed."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise UserError(f"the chat template has {len(source)} characters; the limit is {MAX_TEMPLATE_CHARACTERS}.")
        environment = _Sandbox()
        try:
            tree = environment.parse(source)
            _count_loops(tree)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise UserError(f"the model's chat template is broken: {error}. Use plain text instead.") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tokenizer: SpecialTokens,
        add_generation_prompt: bool = True,
        **values: Any,
    ) -> str:
        """See render_chat."""
        shielded = [_shielded(message, tokenizer.shield) for message in _checked(messages)]
        values = {
            **values,
            "bos_token": "" if tokenizer.bos is None else tokenizer.decode([tokenizer.bos], skip_special=False),
            "eos_token": tokenizer.decode(tokenizer.eos[:1], skip_special=False),
        }
        text = self._run(shielded, add_generation_prompt=add_generation_prompt, **values)
        first = shielded[0]
        if first["role"] == "system" and first.get("content") == "":
            text = self._without_system(text, first, values)
        return text

    def _without_system(self, text: str, first: Message, values: Mapping[str, Any]) -> str:
        """Take off what the empty system message alone renders to, but keep the beginning-of-sequence token."""
        try:
            opening = self._run([first], add_generation_prompt=False, **values)
        except UserError:  # a template that refuses a lone system message keeps what it rendered
            return text
        if not text.startswith(opening):
            return text
        rest = text[len(opening) :]
        bos = values["bos_token"]
        is_lost = bos and opening.startswith(bos) and not rest.startswith(bos)  # SmolLM2's bos begins every turn
        return bos + rest if is_lost else rest

    def _run(self, messages: Sequence[Message], **values: Any) -> str:
        """Render with a fresh budget; every failure inside is a UserError."""
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(messages=messages, **values, **{BUDGET: _Budget()}):
                parts.append(part)
                length += len(part)
                if length > MAX_TEXT:
                    _exceeded("text")
        except UserError:
            raise
        except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError) as error:
            raise UserError(f"the chat template refused the conversation: {error or type(error).__name__}.") from error
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise UserError(f"the chat template cannot render this conversation: {error}.") from error
        return "".join(parts)


class _Budget:
    def __init__(self) -> None:
        self.steps = MAX_STEPS

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            _exceeded("work")


def _exceeded(what: str) -> NoReturn:
    raise UserError(f"the model's chat template makes more {what} than allowed for. Use plain text instead.")


class _Generation(Extension):
    """{% generation %}: marks the assistant's words for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Counts calls, and refuses operations that make huge values."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters.update(tojson=_to_json, ridgeline_counted=_counted, ridgeline_bounded=_bounded)
        for name in ("center", "indent", "xmlattr", "wordwrap", "format"):  # widths and formats without bound
            self.filters.pop(name, None)
        self.filters["replace"] = _replace
        self.filters["indent"] = _indent
        self.globals.update(raise_exception=_refuse, strftime_now=_now)

    def call(self, context: Context, target: Any, /, *arguments: Any, **options: Any) -> Any:
        budget = context.resolve(BUDGET)
        if isinstance(budget, _Budget):
            budget.spend(1)
        owner = getattr(target, "__self__", None)
        if isinstance(owner, str) and getattr(target, "__name__", "") in WIDENING:
            _check_widening(owner, arguments)
        return _bounded(super().call(context, target, *arguments, **options))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and LONG_WIDTH.search(value.__self__):
            _exceeded("text")
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**"):
            if not all(isinstance(x, (int, float)) and abs(x) < 1 << 31 for x in (left, right)):
                _refuse(f"{type(left).__name__} {operator} {type(right).__name__} is not allowed in a chat template")
            if operator == "**" and abs(right) > 64:
                _refuse("that power is not allowed in a chat template")
        if operator == "%" and not isinstance(left, (int, float)):
            _refuse("% formatting is not allowed in a chat template")
        return _bounded(super().call_binop(context, operator, left, right))


def _count_loops(tree: nodes.Template) -> None:
    """Every loop draws its turns from the budget; every joined string is measured."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "ridgeline_counted", [], [], None, None, lineno=loop.lineno)
    for node in list(tree.find_all(nodes.Node)):
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Concat):
                wrapped = nodes.Filter(value, "ridgeline_bounded", [], [], None, None, lineno=value.lineno)
                setattr(node, field, wrapped)
            elif isinstance(value, list):
                value[:] = [
                    nodes.Filter(item, "ridgeline_bounded", [], [], None, None, lineno=item.lineno)
                    if isinstance(item, nodes.Concat)
                    else item
                    for item in value
                ]


@jinja2.pass_context
def _counted(context: Context, items: Any) -> list[Any]:
    budget = context.resolve(BUDGET)
    taken = list(itertools.islice(items, MAX_STEPS + 1))
    if isinstance(budget, _Budget):
        budget.spend(len(taken))
    return taken


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_TEXT:
        _exceeded("text")
    return value


def _check_widening(text: str, arguments: Sequence[Any]) -> None:
    """At most every character becomes the longest argument, or the text is widened to the largest number."""
    longest = max((len(a) for a in arguments if isinstance(a, (str, list, tuple))), default=1)
    widest = max((a for a in arguments if isinstance(a, int)), default=0)
    if (len(text) + 1) * max(longest, 1) > MAX_TEXT * 4 or widest > MAX_TEXT:
        _exceeded("text")


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    source, new = str(text), str(new)
    _check_widening(source, (new,))
    return source.replace(str(old), new, -1 if count is None else count)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(int(width), 256)
    _check_widening(str(text), (margin,))
    lines = str(text).split("\n")
    return "\n".join(
        margin + line if (first or place) and (line or blank) else line for place, line in enumerate(lines)
    )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: no HTML escapes."""
    if indent is not None:
        indent = min(int(indent), 256)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout[:256])


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, (str, Mapping)) or not messages:
        raise UserError("a conversation is a non-empty list of messages, each with role and content.")
    if len(messages) > MAX_MESSAGES:
        raise UserError(f"the conversation has {len(messages)} messages; the limit is {MAX_MESSAGES}.")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"message {place} is not an object with a role (system, user, assistant, tool).")
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise UserError(f"message {place} ({message['role']}) has no text content; content must be a string.")
    return messages


def _shielded(value: Any, shield: Callable[[str], str]) -> Any:
    """A copy with every string shielded; keys are names of fields and stay."""
    if isinstance(value, str):
        return shield(value)
    if isinstance(value, Mapping):
        return {key: _shielded(item, shield) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shielded(item, shield) for item in value]
    return value

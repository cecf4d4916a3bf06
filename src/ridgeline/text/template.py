"""Chat templates: rendered in text/sandbox.py's environment, so a hostile one ends in a UserError.

Environment and functions are those transformers gives (trim_blocks, tojson, strftime_now, raise_exception). An explicit
system message with empty content means *no system turn at all*, even where the template would insert its own (SmolLM2
and Qwen2.5 do): what the template renders for that message alone is taken off the front again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jinja2

from ridgeline.kit.errors import UserError

from .sandbox import BUDGET, MAX_TEXT, Budget, Sandbox, count_loops, exceeded

MAX_TEMPLATE_CHARACTERS = 1 << 18
MAX_MESSAGES = 10_000

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
        environment = Sandbox()
        try:
            tree = environment.parse(source)
            count_loops(tree)
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
            **_shielded(values, tokenizer.shield),
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
            for part in self._template.generate(messages=messages, **values, **{BUDGET: Budget()}):
                parts.append(part)
                length += len(part)  # what a macro or a block writes was counted when it was written
                if length > MAX_TEXT:
                    exceeded("text")
        except UserError:
            raise
        except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError) as error:
            raise UserError(f"the chat template refused the conversation: {error or type(error).__name__}.") from error
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise UserError(f"the chat template cannot render this conversation: {error}.") from error
        return "".join(parts)


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
    """A copy with every string shielded, keys too: those of a tool's parameters are the caller's."""
    if isinstance(value, str):
        return shield(value)
    if isinstance(value, Mapping):
        return {_shielded(key, shield): _shielded(item, shield) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shielded(item, shield) for item in value]
    return value

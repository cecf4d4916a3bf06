"""Tools: the grammars by which a model writes calls of tools, text that obeys a schema, or either.

Made of JSON schemas that callers sent; text/hearing.py reads what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.state.request import Grammar

from .grammar import JSON_OPTIONS, check_schema
from .hearing import CLOSE, OPEN, THOUGHT, CallFormat

TEXT = r"TEXT: /(.|\n)*/"
SLASH = re.compile(r"\\.|/", re.DOTALL)
Schema = Mapping[str, Any]


def call_grammar(
    kind: CallFormat, tools: Mapping[str, Schema], *, is_single: bool = False, instead: Schema | None = None,
    may_talk: bool = False,
) -> Grammar:  # fmt: skip
    """Calls of these tools (name to parameters), one or several. instead: or JSON that obeys this schema. may_talk: or
    any text, with calls in it that are right. UserError for what is no schema."""
    rules = [
        f"call{number}: {_begin(kind, name)} args{number} {_end(kind)}\nargs{number}: {_json(schema)}"
        for number, (name, schema) in enumerate(tools.items())
    ]
    either = " | ".join(f"call{number}" for number in range(len(rules)))
    between = _quoted("\n" if kind == "hermes" else "; ")
    calls = "call" if is_single else f"call ({between} call)*"
    if may_talk and kind == "hermes":
        start = f"start: (head tail)* TEXT\nhead[lazy]: TEXT {_quoted(OPEN)}\ntail: {either}\n{TEXT}"
        rules = [rule.replace(_quoted(OPEN + "\n"), _quoted("\n"), 1) for rule in rules]
    elif may_talk:
        start = f"start: {calls} | WORDS\ncall: {either}\nWORDS: /([^{{](.|\\n)*)?/"
    elif instead is not None:
        start = f"start: {calls} | other\ncall: {either}\nother: {_json(instead)}"
    else:
        start = f"start: {calls}\ncall: {either}"
    return Grammar("lark", "\n".join([start, *rules]))


def after_thoughts(grammar: Grammar) -> Grammar:
    """The same, after thoughts that the prompt has opened. UserError for a grammar in Lark of the caller's own."""
    if grammar.kind == "lark":
        body = grammar.text.replace("start:", "answer:", 1)
        if not grammar.text.startswith("start:"):
            raise UserError("a grammar and thoughts do not go together here; turn thinking off.")
    elif grammar.kind == "regex":
        body = f"answer: /{SLASH.sub(_without_slash, grammar.text)}/"
    elif grammar.kind == "choice":
        body = "answer: " + " | ".join(map(_quoted, msgspec.json.decode(grammar.text, type=list[str])))
    else:
        body = f"answer: {_json(msgspec.json.decode(grammar.text))}"
    text = "" if "\nTEXT:" in body else f"\n{TEXT}"
    return Grammar("lark", f"start: thoughts answer\nthoughts[lazy]: TEXT {_quoted(THOUGHT)}\n{body}{text}")


def _begin(kind: CallFormat, name: str) -> str:
    if kind == "hermes":
        return (
            f"{_quoted(OPEN + chr(10))} {_quoted('{' + _named(name) + ', ' + chr(34) + 'arguments' + chr(34) + ': ')}"
        )
    return _quoted("{" + _named(name) + ', "parameters": ')


def _end(kind: CallFormat) -> str:
    return _quoted("}\n" + CLOSE if kind == "hermes" else "}")


def _named(name: str) -> str:
    return f'"name": {_quoted(name)}'


def _without_slash(found: re.Match[str]) -> str:
    return r"\x2F" if found[0].endswith("/") else found[0]


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _json(schema: Schema) -> str:
    check_schema(schema)
    return "%json " + msgspec.json.encode({**schema, "x-guidance": JSON_OPTIONS}).decode()

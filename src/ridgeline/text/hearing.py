"""Hearing: what a model writes, taken apart as it comes: thoughts, text, and calls of tools.

Model output is hostile input: every character is looked at a bounded number of times, nothing is evaluated, and what is
not a whole and valid call of a known tool is text. How the text was cut into pushes makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from .stop import overlap

CallFormat = Literal["hermes", "llama3"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
THINK, THOUGHT = "<think>", "</think>"
OUTSIDE, INSIDE = re.compile(r'["{}\[\]]'), re.compile(r'["\\]')
DEEPEST = 64  # of a call's JSON


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """arguments: a JSON object, as the model wrote it."""

    name: str
    arguments: str


Part = Said | Thought | Call


def call_format(template: str) -> CallFormat | None:
    """How a model with this chat template writes calls; None: the template knows no tools, or another way."""
    if "tools" not in template:
        return None
    if OPEN in template:
        return "hermes"
    return "llama3" if '"parameters"' in template or "<|python_tag|>" in template else None


class _Call(msgspec.Struct):
    """Other fields (an id, a type) are passed over."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


CALLS = msgspec.json.Decoder(_Call)
OBJECTS = msgspec.json.Decoder(dict[str, object])


def read_call(text: str, names: Sequence[str]) -> Call | None:
    """None: it is no call of one of these tools."""
    try:
        found = CALLS.decode(text)
        arguments = bytes(found.arguments or found.parameters) or b"{}"
        OBJECTS.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return Call(found.name, arguments.decode()) if found.name in names else None


class _Object:
    """The end of a JSON object in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._is_quoted, self._is_escaped = 0, False, False

    def feed(self, text: str) -> int:
        """How many characters of the text belong to the object when it ends there, else -1."""
        place = 0
        while place < len(text):
            if self._is_escaped:
                self._is_escaped = False
                place += 1
                continue
            found = (INSIDE if self._is_quoted else OUTSIDE).search(text, place)
            if found is None:
                return -1
            mark, place = found[0], found.end()
            if mark == "\\":
                self._is_escaped = True
            elif mark == '"':
                self._is_quoted = not self._is_quoted
            else:
                self._depth += 1 if mark in "{[" else -1
                if self._depth <= 0:
                    return place
        return -1


class Thinking:
    """Thoughts between <think> and </think> at the beginning. is_inside: the prompt has opened them already."""

    def __init__(self, is_inside: bool) -> None:
        self._state = "inside" if is_inside else "before"
        self._held = ""

    @property
    def is_inside(self) -> bool:
        return self._state == "inside"

    def push(self, text: str) -> list[Part]:
        text, self._held = self._held + text, ""
        parts: list[Part] = []
        if self._state == "before":
            bare = text.lstrip()
            if len(bare) < len(THINK) and THINK.startswith(bare):
                self._held = text
                return []
            self._state = "inside" if bare.startswith(THINK) else "after"
            text = bare[len(THINK) :] if self._state == "inside" else text
        if self._state == "inside":
            before, mark, after = text.partition(THOUGHT)
            if not mark:
                keep = overlap(text, THOUGHT)
                cut = len(text) - keep
                self._held = text[cut:]
                return [Thought(text[:cut])] if cut else []
            if before:
                parts.append(Thought(before))
            self._state, text = "between", after
        if self._state == "between":
            text = text.lstrip()
            if text:
                self._state = "after"
        return [*parts, Said(text)] if text else parts

    def flush(self) -> list[Part]:
        held, self._held = self._held, ""
        if not held:
            return []
        return [Thought(held) if self._state == "inside" else Said(held)]


class Calling:
    """Calls in one of the formats. Spaces around calls are nobody's."""

    def __init__(self, kind: CallFormat, names: Sequence[str], *, may_lack_marks: bool = False) -> None:
        """may_lack_marks: an answer that begins with a whole call of a known tool is one without <tool_call> too; small
        models leave it out."""
        self._kind, self._names = kind, tuple(names)
        self._state = "bare" if kind == "llama3" or may_lack_marks else "text"
        self._is_bare = self._state == "bare"  # the object that is heard, or comes next, has no marks
        self._held = ""  # may begin a mark
        self._spaces: list[str] = []
        self._raw: list[str] = []  # of what may be a call
        self._object = _Object()
        self._body: list[str] = []
        self.calls = 0

    def push(self, text: str) -> list[Part]:
        parts: list[Part] = []
        while text:
            text = getattr(self, f"_{self._state}")(text, parts)
        return parts

    def flush(self) -> list[Part]:
        parts: list[Part] = []
        if self._state == "inside" and self._is_bare and self._kind == "hermes":
            parts += self.push(self._taken_back())
        if self._state == "close":  # only the closing mark is missing
            self._finish(parts)
        held = "".join(self._raw) + self._held
        self._raw, self._held = [], ""
        self._say(held, parts)
        if self._spaces and not self.calls:
            parts.append(Said("".join(self._spaces)))
        self._spaces = []
        return parts

    # -- states: each takes text, and gives back what it leaves to the next

    def _text(self, text: str, parts: list[Part]) -> str:
        text, self._held = self._held + text, ""
        if self._kind == "llama3":
            self._say(text, parts)
            return ""
        before, mark, after = text.partition(OPEN)
        if not mark:
            keep = overlap(text, OPEN)
            cut = len(text) - keep
            self._held = text[cut:]
            self._say(text[:cut], parts)
            return ""
        self._say(before, parts)
        self._state, self._raw, self._is_bare = "open", [OPEN], False
        return after

    def _bare(self, text: str, parts: list[Part]) -> str:
        """Calls and nothing else, one after the other: all of Llama 3's, and others' without marks."""
        rest = text.lstrip(" \n\t\r;," if self.calls else None)
        self._spaces.append(text[: len(text) - len(rest)])
        if rest:
            self._state = "inside" if rest[0] == "{" else "text"
        return rest

    def _open(self, text: str, parts: list[Part]) -> str:
        rest = text.lstrip()
        self._raw.append(text[: len(text) - len(rest)])
        if rest and rest[0] != "{":
            self._give_up(parts)
        elif rest:
            self._state = "inside"
        return rest

    def _inside(self, text: str, parts: list[Part]) -> str:
        end = self._object.feed(text)
        piece = text if end < 0 else text[:end]
        self._raw.append(piece)
        self._body.append(piece)
        if end < 0:
            return ""
        if not self._is_bare:
            self._state = "close"
        elif self._kind == "llama3" or read_call("".join(self._body), self._names) is not None:
            self._finish(parts)
        else:
            return self._taken_back() + text[end:]
        return text[end:]

    def _close(self, text: str, parts: list[Part]) -> str:
        rest, self._held = self._held + text, ""
        bare = rest.lstrip()
        if len(bare) < len(CLOSE) and CLOSE.startswith(bare):
            self._raw.append(rest[: len(rest) - len(bare)])
            self._held = bare
            return ""
        if bare.startswith(CLOSE):
            self._raw.append(rest[: len(rest) - len(bare)] + CLOSE)
            self._finish(parts)
            return bare[len(CLOSE) :]
        self._give_up(parts)
        return rest

    # -- ends

    def _finish(self, parts: list[Part]) -> None:
        call = read_call("".join(self._body), self._names)
        if call is None:
            self._give_up(parts)
            return
        self._spaces, self._raw, self._held = [], [], ""
        self.calls += 1
        parts.append(call)
        self._reset("bare" if self._is_bare else "text")

    def _give_up(self, parts: list[Part]) -> None:
        """It was text after all."""
        raw, self._raw = "".join(self._raw), []
        self._reset("text")
        self._say(raw, parts)

    def _taken_back(self) -> str:
        """What was no call without marks: it is heard once more, as text that may hold some with marks."""
        raw, self._raw = "".join(self._raw), []
        self._reset("text")
        return raw

    def _reset(self, state: str) -> None:
        self._state, self._object, self._body = state, _Object(), []

    def _say(self, text: str, parts: list[Part]) -> None:
        """Spaces at the end wait for what follows them."""
        bare = text.rstrip()
        if bare:
            parts.append(Said("".join(self._spaces) + bare))
            self._spaces = []
        if len(bare) < len(text):
            self._spaces.append(text[len(bare) :])


class Hearing:
    """Thoughts first, then calls; either may be None."""

    def __init__(self, thinking: Thinking | None, calling: Calling | None) -> None:
        self._thinking, self._calling = thinking, calling

    @property
    def is_thinking(self) -> bool:
        return self._thinking is not None and self._thinking.is_inside

    def push(self, text: str) -> list[Part]:
        return self._heard([Said(text)] if self._thinking is None else self._thinking.push(text))

    def flush(self) -> list[Part]:
        parts = self._heard([] if self._thinking is None else self._thinking.flush())
        return parts + ([] if self._calling is None else self._calling.flush())

    def _heard(self, parts: list[Part]) -> list[Part]:
        heard: list[Part] = []
        for part in parts:
            if isinstance(part, Said) and self._calling is not None:
                heard += self._calling.push(part.text)
            elif not isinstance(part, Said) or part.text:
                heard.append(part)
        return heard

"""Thoughts, text and calls out of what a model writes: any cut of any text gives the same, and nothing is lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.text.hearing import Call, Calling, Hearing, Part, Said, Thinking, Thought, call_format, read_call

CALL = '{"name": "f", "arguments": {"a": "}</tool_call>{\\""}}'
WHOLE = f"<tool_call>\n{CALL}\n</tool_call>"
LLAMA = '{"name": "f", "parameters": {"a": 1}}'


def hear(
    text: str, cuts: list[int], kind: str | None = "hermes", thinks: bool = False, inside: bool = False
) -> list[Part]:
    form, _, bare = (kind or "").partition("-")  # hermes-bare: marks may lack
    calling = None if kind is None else Calling(form, ["f", "g"], may_lack_marks=bool(bare))  # type: ignore[arg-type]
    hearing = Hearing(Thinking(inside) if thinks else None, calling)
    parts: list[Part] = []
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    for begin, end in pairwise(places):
        parts += hearing.push(text[begin:end])
    return parts + hearing.flush()


def joined(parts: list[Part]) -> list[Part]:
    """Neighbouring texts as one."""
    whole: list[Part] = []
    for part in parts:
        if whole and not isinstance(part, Call) and type(part) is type(whole[-1]):
            whole[-1] = type(part)(whole[-1].text + part.text)  # type: ignore[union-attr]
        else:
            whole.append(part)
    return whole


pieces = st.lists(
    st.sampled_from([WHOLE, "<tool_call>", "</tool_call>", CALL, LLAMA, "{", "}", '"', "\\", " \n", "x", "<think>",
                     "</think>", "<tool_", "; ", "{}", '{"name": "z", "arguments": {}}']), max_size=8,
)  # fmt: skip


@given(texts=pieces, cuts=st.lists(st.integers(0, 500), max_size=30), thinks=st.booleans(), inside=st.booleans(),
       kind=st.sampled_from(["hermes", "hermes-bare", "llama3", None]))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_cuts_make_no_difference(
    texts: list[str], cuts: list[int], kind: str | None, thinks: bool, inside: bool
) -> None:
    text = "".join(texts)
    whole = joined(hear(text, [], kind, thinks, inside))
    assert joined(hear(text, cuts, kind, thinks, inside)) == whole
    assert joined(hear(text, list(range(len(text))), kind, thinks, inside)) == whole
    for part in whole:
        if isinstance(part, Call):
            assert part.name == "f" and isinstance(json.loads(part.arguments), dict)
    if not thinks and not any(isinstance(part, Call) for part in whole):
        assert "".join(part.text for part in whole) == text  # type: ignore[union-attr]


def test_text_around_calls() -> None:
    assert hear(f"Let me see.\n{WHOLE}\n{WHOLE}\n done ", []) == [
        Said("Let me see."), Call("f", '{"a": "}</tool_call>{\\""}'), Call("f", '{"a": "}</tool_call>{\\""}'),
        Said("\n done"),
    ]  # fmt: skip
    assert hear(WHOLE.removesuffix("</tool_call>"), []) == [Call("f", '{"a": "}</tool_call>{\\""}')]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{",
        '<tool_call>{"name": "f"',
        "<tool_call> no",
        "<tool_call>",
        '<tool_call>{"name": "z", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        "<tool_call>{}</tool_call>",
    ],
)
def test_half_or_wrong_calls_are_text(text: str) -> None:
    assert joined(hear(text, [])) == [Said(text)]


def test_llama_calls() -> None:
    assert hear(f"{LLAMA}; {LLAMA}", [], "llama3") == [Call("f", '{"a": 1}')] * 2
    assert joined(hear(f"I say {LLAMA}", [], "llama3")) == [Said(f"I say {LLAMA}")]
    assert joined(hear('{"a": 1}', [], "llama3")) == [Said('{"a": 1}')]


def test_calls_without_marks() -> None:
    said = Call("f", '{"a": "}</tool_call>{\\""}')
    assert hear(f"\n{CALL}\n{CALL}", [], "hermes-bare") == [said, said] != joined(hear(CALL, []))
    assert joined(hear(f"{CALL} so", [], "hermes-bare")) == [said, Said(" so")]
    for text in (f"I say {CALL}", '{"a": 1}', CALL[:-1], CALL.replace('"f"', '"z"'), f"```json\n{CALL}\n```"):
        assert joined(hear(text, [], "hermes-bare")) == [Said(text)]
    inner = f'{{"a": 1}} then {WHOLE}'  # marks are heard where the first object was none
    assert joined(hear(inner, [], "hermes-bare")) == [Said('{"a": 1} then'), said]
    assert joined(hear(f"{{ {WHOLE}", [], "hermes-bare")) == [Said("{"), said]


def test_thoughts() -> None:
    assert joined(hear("<think>\nhm </thin</think>\n\nyes", [], None, True)) == [Thought("\nhm </thin"), Said("yes")]
    assert joined(hear("hm</think>yes", [], None, True, True)) == [Thought("hm"), Said("yes")]
    assert joined(hear("hm", [], None, True, True)) == [Thought("hm")]
    assert joined(hear("no <think>x</think>", [], None, True)) == [Said("no <think>x</think>")]
    thought = hear(f"<think>{WHOLE}</think>{WHOLE}", [], "hermes", True)
    assert thought == [Thought(WHOLE), Call("f", '{"a": "}</tool_call>{\\""}')]


@pytest.mark.parametrize(
    "text",
    [
        "{" * 60_000,
        "<tool_call>{" + "[" * 60_000,
        "<tool_call>{" * 6_000,
        "<tool_call>" + '{"a' * 20_000,
        " " * 60_000,
        "<tool_call>" + " " * 60_000,
    ],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    """Quadratic would be minutes."""
    for kind in ("hermes", "hermes-bare", "llama3"):
        assert "".join(part.text for part in hear(text, list(range(0, len(text), 3)), kind)) == text  # type: ignore[union-attr]


def test_formats_are_told_by_templates() -> None:
    assert call_format("{{ tools }}<tool_call>") == "hermes"
    assert call_format('{{ tools }} {"name": x, "parameters": y}') == "llama3"
    assert call_format("{{ messages }}<tool_call>") is None and call_format("{{ tools }}") is None


def test_reading_a_call() -> None:
    assert read_call('{"name": "f"}', ["f"]) == Call("f", "{}")
    for text in ('{"name": "f", "arguments": "{}"}', "[", '{"arguments": {}}', '{"name": 1}', '{"a":' * 9000):
        assert read_call(text, ["f"]) is None

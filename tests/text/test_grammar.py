"""Grammars as masks: what they allow, what is refused, and that a look ahead along guesses changes nothing."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kit.errors import UserError
from ridgeline.state.request import Grammar, Request, Sampling
from ridgeline.state.sequence import Sequence
from ridgeline.text.grammar import Lexicon, Rules, source_of

pytest.importorskip("llguidance", reason="needs ridgeline[grammar]")
END, VOCABULARY = 256, 300  # bytes, an end, some words, some ids that mean nothing
WORDS = [b"true", b'{"', b'":', b"12", b"ab", b"  ", b'"a"']
PIECES = [bytes([byte]) for byte in range(256)] + [b"<end>", *WORDS]
PIECES += [b""] * (VOCABULARY - len(PIECES))
LEXICON = Lexicon(PIECES, [END], (END,), lambda data: list(data))
PERSON = json.dumps(
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer"}},
     "required": ["name", "age"], "additionalProperties": False}
)  # fmt: skip
GRAMMARS = (
    Grammar("regex", r"\d{4}-\d{2}|no(ne)?"), Grammar("json_schema", PERSON),
    Grammar("choice", '["red", "green", "é"]'),
    Grammar("lark", 'start: "a" start "b" | "c"'), Grammar("json_schema", '{"type": "object"}'),
)  # fmt: skip


def rules() -> Rules:
    return Rules(lambda: LEXICON, VOCABULARY)


def sequence(grammar: Grammar | None, tokens: tuple[int, ...] = (), min_tokens: int = 0, number: int = 0) -> Sequence:
    asked = Request("r", (65,), 500, Sampling(grammar=grammar), (END,), min_tokens=min_tokens)
    return Sequence(number, asked, 0.0, [65, *tokens])


def allowed(mask: np.ndarray | None) -> list[int]:
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def written(grammar: Grammar, seed: int, most: int = 400) -> tuple[list[int], bool]:
    """Tokens of one answer that chance has chosen, and whether it came to its end."""
    chance, made, one = random.Random(seed), rules(), sequence(grammar)
    for _ in range(most):
        token = chance.choice(allowed(made.mask(one)))
        if token == END:
            return one.tokens[1:], True
        one.tokens.append(token)
    return one.tokens[1:], False


def text_of(tokens: list[int]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_chosen_obeys(seed: int) -> None:
    tokens, is_whole = written(GRAMMARS[0], seed)
    assert is_whole and re.fullmatch(r"\d{4}-\d{2}|no(ne)?", text_of(tokens))
    tokens, is_whole = written(GRAMMARS[2], seed)
    assert is_whole and text_of(tokens) in ("red", "green", "é")
    tokens, is_whole = written(GRAMMARS[1], seed)
    if is_whole:
        person = json.loads(text_of(tokens))
        assert list(person) == ["name", "age"] and isinstance(person["age"], int) and len(person["name"]) <= 6


@given(which=st.sampled_from(GRAMMARS), seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_looking_ahead_is_the_same_as_going_there_and_leaves_no_trace(
    which: Grammar, seed: int, data: st.DataObject
) -> None:
    tokens, _ = written(which, seed, 40)
    place = data.draw(st.integers(0, len(tokens)))
    ahead = data.draw(st.integers(0, len(tokens) - place))
    path = tuple(tokens[place : place + ahead])
    made = rules()
    looking = sequence(which, tuple(tokens[:place]))
    before = made.mask(looking)
    there = made.mask(sequence(which, tuple(tokens[: place + ahead]), number=1))
    np.testing.assert_array_equal(made.mask(looking, path), there)
    wrong = next((token for token in range(VOCABULARY) if token not in allowed(there)), None)
    if wrong is not None:
        assert made.mask(looking, (*path, wrong)) is None
    assert made.mask(looking, (*path, END, 65)) is None
    np.testing.assert_array_equal(made.mask(looking), before)
    assert not made.failure(looking)


def test_min_tokens_puts_off_the_end_unless_the_grammar_can_only_end() -> None:
    made = rules()
    assert END not in allowed(made.mask(sequence(None, (1, 2), min_tokens=3)))
    assert made.mask(sequence(None, (1, 2, 3), min_tokens=3, number=1)) is None
    assert made.mask(sequence(None, (1, 2), min_tokens=3, number=2), (7,)) is None
    digits = Grammar("regex", r"\d{1,3}")
    assert END not in allowed(made.mask(sequence(digits, (50,), min_tokens=3, number=3)))
    assert allowed(made.mask(sequence(digits, (50, 50, 50), min_tokens=5, number=4))) == [END]


def test_ids_that_mean_nothing_are_never_allowed() -> None:
    everything = allowed(rules().mask(sequence(Grammar("regex", r"(.|\n)*"))))
    assert max(everything) < 257 + len(WORDS) and END in everything


def test_an_answer_that_left_its_grammar_fails_closed() -> None:
    made, one = rules(), sequence(GRAMMARS[0], (50,))
    assert made.mask(one) is not None
    one.tokens.append(120)
    assert made.mask(one) is None and "left its grammar" in made.failure(one)
    made.forget(one.id)
    assert made.failure(one) == ""


HOSTILE = {
    "loop": ("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'),
    "elsewhere": ("json_schema", '{"$ref": "http://169.254.169.254/x"}'),
    "file": ("json_schema", '{"$ref": "file:///etc/passwd"}'),
    "unknown": ("json_schema", '{"type": "array", "uniqueItems": true}'),
    "nothing": ("json_schema", '{"enum": []}'),
    "lenient": ("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}'),
    "deep": ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000),
    "nested": ("json_schema", '{"properties": {"a":' * 40 + "{}" + "}}" * 40),
    "no object": ("json_schema", "[1]"),
    "no json": ("json_schema", "{"),
    "look around": ("regex", "(?=a)b"),
    "no regex": ("regex", "("),
    "no rule": ("lark", "start: b"),
    "endless": ("lark", "start: a\na: a"),
    "empty choice": ("choice", "[]"),
    "choice of numbers": ("choice", "[1]"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_cannot_be_enforced_is_refused(name: str) -> None:
    kind, text = HOSTILE[name]
    with pytest.raises(UserError, match=r"cannot be enforced|JSON|nested|x-guidance|choice"):
        LEXICON.compile(Grammar(kind, text))  # type: ignore[arg-type]


def test_backtracking_costs_nothing() -> None:
    made = rules()
    for number, text in enumerate((r"(a+)+b", r"(a*)*(a*)*b", r"(x+x+)+y")):
        one = sequence(Grammar("regex", text), number=number)
        for _ in range(200):
            letter = b"aax"[number]
            assert letter in allowed(made.mask(one))
            one.tokens.append(letter)
        assert not made.failure(one)


def test_compiled_grammars_are_kept_within_bounds() -> None:
    made = Rules(lambda: LEXICON, VOCABULARY, kept=4)
    for number in (0, 1, 2, 3, 0, 4):
        made.prepare(Grammar("regex", f"a{number}"))
    assert [made.is_prepared(Grammar("regex", f"a{number}")) for number in range(5)] == [True, False, True, True, True]


def test_a_model_without_an_end_has_no_grammars() -> None:
    with pytest.raises(UserError, match="no token that ends"):
        Lexicon(PIECES, [], (), lambda data: list(data))


def test_white_space_in_json_is_bounded() -> None:
    made, one = rules(), sequence(Grammar("json_schema", '{"type": "object"}'), tuple(b"{" + b" " * 16))
    assert 32 not in allowed(made.mask(one)) and source_of(GRAMMARS[4])

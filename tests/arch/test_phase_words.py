"""Progress is a number (DESIGN §1): the mechanism never says which phase a token belongs to.

Rule, for code of schedule/, engine/ and state/ (comments and docstrings may explain phases):
no identifier and no string has the word prefill, decode or draft, in any form of FORBIDDEN, after names are split
at underscores and capitals. Legal: `decoder` (who decides how many tokens), and `decode` as an attribute or
a dotted module (`tokenizer.decode`, `ridgeline.decode`), which name bytes and a room, not a phase.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from .source import modules, shown, tree, words

FORBIDDEN = {
    *("prefill", "prefills", "prefilled", "prefilling"),
    *("decode", "decodes", "decoding"),
    *("draft", "drafts", "drafted", "drafting", "drafter"),
}
ROOMS = ("schedule", "engine", "state")


def docstring_lines(path: Path) -> set[int]:
    """Lines on which a docstring (or a bare string statement) starts."""
    return {
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def phase_words(text: str, docstrings: set[int]) -> Iterator[tuple[int, str]]:
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        found = set(words(token.string)) & FORBIDDEN
        is_attribute = token.type == tokenize.NAME and before == "." and token.string == "decode"
        is_room = token.type == tokenize.STRING and ".decode" in token.string
        is_prose = token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.start[0] in docstrings)
        if found and not (is_prose or ((is_attribute or is_room) and found == {"decode"})):
            yield token.start[0], token.string
        if token.string.strip():
            before = token.string


@pytest.mark.parametrize("room", ROOMS)
def test_the_mechanism_never_names_a_phase(room: str) -> None:
    wrong = [
        f"{shown(path, line)} {string}"
        for path in modules(room)
        for line, string in phase_words(path.read_text(encoding="utf-8"), docstring_lines(path))
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("code", "is_phase"),
    [
        ("is_prefill = True", True),
        ("class DraftModel: ...", True),
        ("kind = 'decode'", True),
        ("decodeTokens = 1", True),
        ("sequence.prefilled", True),
        ("sequence.decoder.want(sequence)", False),
        ("text = tokenizer.decode(ids)", False),
        ("from ridgeline.decode import sampling", False),
        ("table = 'ridgeline.decode.plain:Plain'", False),
        ("x = 1  # the draft is verified here", False),
    ],
)
def test_the_rule_itself(code: str, is_phase: bool) -> None:
    assert bool(list(phase_words(code + "\n", set()))) == is_phase

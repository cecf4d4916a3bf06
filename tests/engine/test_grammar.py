"""Grammars through a whole engine: the same tokens alone, together, and with guesses; and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.state.request import Grammar, Request, Sampling
from tests.cli.conftest import write_model

pytest.importorskip("llguidance", reason="needs ridgeline[grammar]")
DATE = Grammar("regex", r"\d{4}-\d{2}-\d{2}( (am|pm))?")
FRUIT = Grammar("json_schema", json.dumps({
    "type": "object", "properties": {"fruit": {"enum": ["fig", "plum"]}, "n": {"type": "integer", "maximum": 99}},
    "required": ["fruit", "n"], "additionalProperties": False,
}))  # fmt: skip
ASKED: tuple[dict[str, Any], ...] = (
    {"grammar": DATE}, {"grammar": DATE, "temperature": 1.5, "seed": 3}, {"grammar": FRUIT}, {},
    {"grammar": FRUIT, "temperature": 2.0, "seed": 4, "repetition_penalty": 1.2}, {"grammar": DATE, "min_tokens": 13},
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def llm(tiny: str) -> Iterator[LLM]:
    with LLM(tiny, threads=1, kv_bytes=4 << 20) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[tuple[int, ...]]:
    return [llm.generate("when", max_tokens=120, **asked)[0].tokens for asked in ASKED]


def test_answers_obey(llm: LLM, alone: list[tuple[int, ...]]) -> None:
    texts = [llm.tokenizer.decode(tokens) for tokens in alone]
    for place in (0, 1, 5):
        assert re.fullmatch(DATE.text, texts[place])
    assert len(texts[5]) == 13
    assert {"fruit", "n"} == set(json.loads(texts[2])) == set(json.loads(texts[4]))


def test_an_answer_ends_with_its_grammar(llm: LLM) -> None:
    one = llm.generate("when", max_tokens=60, grammar=Grammar("choice", '["yes", "no"]'), logprobs=2)[0]
    assert one.text in ("yes", "no") and one.finish == "stop" and len(one.scored) == len(one.tokens)
    assert one.scored[0].rank >= 0  # of the raw logits: the chosen token need not be the likeliest
    assert llm.generate("when", max_tokens=3, grammar=DATE)[0].finish == "length"


@pytest.mark.parametrize("options", [{"spec": "ngram:k=4,adapt=off"}, {"spec": "ngram:k=6,n=1,width=2,adapt=off"},
                                     {"max_sequences": 2, "step_tokens": 32, "kv_bytes": 1 << 17}])  # fmt: skip
def test_the_same_tokens_together_and_with_guesses(
    tiny: str, alone: list[tuple[int, ...]], options: dict[str, Any]
) -> None:
    with LLM(tiny, threads=1, **({"kv_bytes": 4 << 20} | options)) as llm:
        streams = []
        for number, asked in enumerate(ASKED * 2):
            fields = dict(asked)
            least = fields.pop("min_tokens", 0)
            ids = llm.encode("when")
            streams.append(llm.submit(Request(
                f"r{number}", ids, 120, Sampling(**fields), (257,), min_tokens=least
            )))  # fmt: skip
        for stream, expected in zip(streams, alone * 2, strict=True):
            assert tuple(token for event in stream for token in event.tokens) == expected


def test_what_cannot_be_enforced_is_refused_and_others_go_on(llm: LLM) -> None:
    good = llm.submit(Request("good", (65,), 60, Sampling(), (257,), ignore_stop=True))
    with pytest.raises(UserError, match="cannot be enforced"):
        llm.generate("x", grammar=Grammar("json_schema", '{"type": "array", "uniqueItems": true}'))
    with pytest.raises(UserError, match="ignore_stop"):
        llm.generate("x", grammar=DATE, ignore_stop=True)
    with pytest.raises(UserError, match="min_tokens"):
        llm.generate("x", max_tokens=3, min_tokens=4)
    with pytest.raises(UserError, match="limit"):
        llm.generate("x", grammar=Grammar("regex", "a" * 300_000))
    assert sum(len(event.tokens) for event in good) == 60


def test_cancel_while_a_grammar_is_compiled(llm: LLM) -> None:
    wide = {"type": "object", "properties": {f"field {i}": {"type": "string"} for i in range(1500)}}
    grammar = Grammar("json_schema", json.dumps(wide))
    stream = llm.submit(Request("slow", (65,), 60, Sampling(grammar=grammar), (257,)))
    stream.cancel()
    assert [event.finish for event in stream][-1] == "cancelled"
    assert llm.generate("x", max_tokens=2)[0].tokens


def test_salts_part_what_is_shared(llm: LLM) -> None:
    ids = tuple(range(64))
    cached = []
    for number, salt in enumerate(("a", "a", "b", None)):
        events = list(llm.submit(Request(f"salt{number}", ids, 1, salt=salt, tenant="a")))
        cached.append(events[0].tokens_cached)
    assert cached == [0, 63, 0, 63]  # None: the tenant's


def test_without_the_library_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ridgeline.text import grammar

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"ridgeline\[grammar\]"):
        grammar.library()

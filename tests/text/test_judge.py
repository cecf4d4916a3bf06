"""The process that judges strangers' grammars: it says no, it is killed when it takes too long, and it comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, pre_tokenizers

from ridgeline.kit.errors import UserError
from ridgeline.state.request import Grammar
from ridgeline.text import judge as room
from ridgeline.text.judge import Judge
from ridgeline.text.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="needs ridgeline[grammar]")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pipeline = Pipeline(models.BPE({letter: index for index, letter in enumerate(letters)} | {"<end>": 256}, []))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens(["<end>"])
    made = Judge(Tokenizer(pipeline, eos=(256,)), 320, (256,))
    yield made
    made.close()


def test_good_and_bad(judge: Judge) -> None:
    judge.check(Grammar("json_schema", '{"type": "object"}'))
    for kind, text in (("json_schema", '{"not": {}}'), ("regex", "("), ("json_schema", '{"a":' * 5000), ("lark", "x")):
        with pytest.raises(UserError, match=r"enforced|JSON"):
            judge.check(Grammar(kind, text))  # type: ignore[arg-type]


def test_what_takes_too_long_is_killed_and_the_next_is_judged(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    judge.check(Grammar("regex", "a"))
    before = judge._process
    monkeypatch.setattr(room, "COMPILE_S", 0.0)
    with pytest.raises(UserError, match="more than 0 s"):
        judge.check(Grammar("regex", "b"))
    monkeypatch.undo()
    judge.check(Grammar("regex", "c"))
    assert judge._process is not before


def test_a_process_that_died_is_replaced(judge: Judge) -> None:
    judge.check(Grammar("regex", "d"))
    assert judge._process is not None
    judge._process.kill()
    judge._process.wait()
    with pytest.raises(UserError, match="memory"):
        judge.check(Grammar("regex", "e"))
    judge.check(Grammar("regex", "f"))

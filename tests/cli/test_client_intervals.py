"""What the client names of a request's time: a slow template, a slow tokenizer and a slow reader, each under its own
name. Only least times are asked for, so that a busy machine fails nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from ridgeline.llm import LLM

RENDER_S, TOKENIZE_S, STALL_S = 0.02, 0.08, 0.25
NS = 1e9


class SlowMessages(list[dict[str, str]]):
    """Takes its time when the template reads it."""

    def __iter__(self) -> Iterator[dict[str, str]]:
        time.sleep(RENDER_S)
        return super().__iter__()


class SlowTokenizer:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def encode(self, text: str, **options: bool) -> list[int]:
        time.sleep(TOKENIZE_S)
        return list(self._inner.encode(text, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def llm(tiny: str) -> Iterator[LLM]:
    with LLM(tiny, kv_bytes=1 << 22) as made:
        made._tokenizer = SlowTokenizer(made.tokenizer)  # type: ignore[assignment]
        yield made


def test_template_tokenizer_and_reader_have_their_own_names(llm: LLM) -> None:
    messages = SlowMessages([{"role": "user", "content": "hello"}])
    began = time.perf_counter_ns()
    for _ in llm.stream_chat(messages, max_tokens=3, ignore_stop=True):
        last = time.perf_counter_ns()
        time.sleep(STALL_S)  # the engine is done long before
    (one,) = llm.ledger().requests
    assert one.wall_ns["render"] >= RENDER_S * NS
    assert one.wall_ns["tokenize"] >= TOKENIZE_S * NS
    assert one.wall_ns["client_stall"] >= STALL_S * NS
    assert sum(one.wall_ns.values()) == one.e2e_ns <= last - began


def test_plain_text_is_tokenized_and_not_rendered(llm: LLM) -> None:
    llm.generate("hello", max_tokens=2, ignore_stop=True)
    (one,) = llm.ledger().requests
    assert one.wall_ns["tokenize"] >= TOKENIZE_S * NS and "render" not in one.wall_ns

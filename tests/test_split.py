"""The real checkpoint through LLM(): an answer is the same with two streams of steps, and its intervals are its wall
time."""

from __future__ import annotations

from typing import Any

import pytest

from ridgeline.llm import LLM

from .test_disaggregated import PROMPTS

pytestmark = pytest.mark.model


@pytest.mark.parametrize("options", [{}, {"kv": "int8"}, {"spec": "ngram:k=4"}], ids=["bf16", "int8", "ngram"])
def test_the_same_tokens_as_one_stream(options: dict[str, Any]) -> None:
    answers, ledgers = [], []
    for place in ("chunked", "split"):
        with LLM("smollm2-135m", place=place, threads=2, chunk=64, context=1024, kv_bytes=64 << 20, **options) as llm:
            answers.append([one.tokens for one in llm.generate(list(PROMPTS), max_tokens=16, ignore_stop=True)])
            ledgers.append(llm.ledger())
    assert answers[0] == answers[1]
    for ledger in ledgers:
        assert len(ledger.requests) == len(PROMPTS) and not ledger.partial
        assert all(sum(one.wall_ns.values()) == one.e2e_ns for one in ledger.requests)
        assert ledger.step_ns + ledger.idle_ns == ledger.engine_ns

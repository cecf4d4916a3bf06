"""The real checkpoint through LLM(): an answer is the same wherever its tokens are computed, and its intervals are its
wall time."""

from __future__ import annotations

import pytest

from ridgeline.llm import LLM
from ridgeline.state.request import Request, Sampling

pytestmark = pytest.mark.model

PROMPTS = (
    "The capital of France is",
    "Why is the sky blue? Answer in one sentence.",
    "def fibonacci(n):\n",
    " ".join(f"Line {n}: the river runs past mile {n * 7}." for n in range(24)),
)
SAMPLINGS = (Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=3))


def test_the_engine_chooses_and_says_so() -> None:
    answers = []
    for place in ("chunked", "auto:tbt=1ms"):
        with LLM("smollm2-135m", place=place, context=1024, kv_bytes=64 << 20) as llm:
            answers.append([one.tokens for one in llm.generate(list(PROMPTS), max_tokens=16, ignore_stop=True)])
            choices = llm.account().choices
    assert answers[0] == answers[1]
    assert choices["gap_goal_s"] == 0.001 and choices["switches"] == len(choices["log"])
    assert all(one["why"] and one["forecast"] and one["outcome"] for one in choices["log"])


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_the_same_tokens_as_one_engine(kv: str) -> None:
    answers, walls = [], []
    for place in ("chunked", "disaggregated", "disaggregated:engines=1+2,route=round"):
        with LLM("smollm2-135m", place=place, kv=kv, context=1024, kv_bytes=64 << 20) as llm:
            answers.append([one.tokens for one in llm.generate(list(PROMPTS), max_tokens=16, ignore_stop=True)])
            walls.append(llm.ledger())
    assert answers[0] == answers[1] == answers[2]
    for ledger in walls:
        assert len(ledger.requests) == len(PROMPTS) and not ledger.partial
        assert all(sum(one.wall_ns.values()) == one.e2e_ns for one in ledger.requests)
    assert all(one.wall_ns.get("transfer", 0) > 0 for ledger in walls[1:] for one in ledger.requests)


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_the_same_tokens_where_requests_move(kv: str) -> None:
    """All long answers begin at one of two engines: some end at the other, sampled ones too; nothing is torn apart."""
    answers = []
    for place in ("chunked", "disaggregated:engines=1+2,route=round,rebalance=oracle,every=2"):
        with LLM("smollm2-135m", place=place, kv=kv, context=512, kv_bytes=48 << 20) as llm:
            asked = [
                Request(
                    f"r{n}", llm.encode(PROMPTS[n % 3]), 6 if n % 2 else 80, SAMPLINGS[n // 2 % 2], ignore_stop=True
                )
                for n in range(8)
            ]
            runs = [llm.submit(one) for one in asked]
            answers.append([tuple(token for event in run for token in event.tokens) for run in runs])
            moves = getattr(llm._client, "moved", 0)
    assert answers[0] == answers[1] and moves > 0

"""Request and Sampling: every wrong value is refused with its limit; nothing is truncated."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.kit.errors import UserError
from ridgeline.state.request import Request, Sampling

VOCABULARY, CONTEXT = 50, 20
GOOD: dict[str, Any] = {"id": "a", "prompt": (1, 2, 3), "max_tokens": 4}


def test_a_good_request_passes() -> None:
    Request(**GOOD).check(VOCABULARY, CONTEXT)
    Request(**GOOD | {"prompt": (0,) * 19, "max_tokens": 999}).check(VOCABULARY, CONTEXT)
    Request(**GOOD | {"prompt": (49,) * 20, "max_tokens": 0, "prompt_logprobs": 20}).check(VOCABULARY, CONTEXT)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": ()}, "empty"),
        ({"prompt": (1, 50)}, "token 50; this model's ids are 0 to 49"),
        ({"prompt": (-1,)}, "token -1"),
        ({"stop_ids": (3, 77)}, "stop_ids holds token 77"),
        ({"max_tokens": 0}, "must be >= 1"),
        ({"max_tokens": -5, "prompt_logprobs": 0}, "max_tokens is -5"),
        ({"prompt_logprobs": 21}, r"in \[0, 20\]"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ({"prompt": (1,) * 20}, "leaves room for 19"),
        ({"prompt": (1,) * 21, "max_tokens": 0, "prompt_logprobs": 0}, "leaves room for 20"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature is -1.0"),
        ({"sampling": Sampling(temperature=float("nan"))}, "temperature is nan"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p"),
        ({"sampling": Sampling(logit_bias={50: 1.0})}, "logit_bias names token 50"),
        ({"sampling": Sampling(logit_bias={1: float("nan")})}, "logit_bias of token 1"),
        ({"sampling": Sampling(logprobs=21)}, "logprobs is 21"),
        ({"sampling": Sampling(seed=-1)}, "seed"),
    ],
)
def test_a_wrong_value_is_refused_with_its_limit(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Request(**GOOD | fields).check(VOCABULARY, CONTEXT)


def test_history_is_needed_by_penalties_only() -> None:
    assert not Sampling(temperature=1.0, top_k=5, logit_bias={1: 2.0}).needs_history
    for name, value in (("repetition_penalty", 1.1), ("presence_penalty", 0.1), ("frequency_penalty", -0.1)):
        assert Sampling(**{name: value}).needs_history


@given(st.integers(1, 30), st.integers(0, 30))
def test_the_last_chosen_token_is_never_computed(prompt: int, max_tokens: int) -> None:
    request = Request("a", (1,) * prompt, max_tokens)
    assert request.tokens_most(CONTEXT) == min(CONTEXT, max(prompt, prompt + max_tokens - 1))


def test_unknown_fields_are_refused_on_the_wire() -> None:
    frame = msgspec.msgpack.encode(GOOD | {"temprature": 1.0})
    with pytest.raises(msgspec.ValidationError, match="temprature"):
        msgspec.msgpack.decode(frame, type=Request)

"""Messages: what is sent is what arrives, and nothing else does."""

from __future__ import annotations

import msgspec
import pytest

from ridgeline.state.event import Scored, TokenEvent
from ridgeline.state.messages import (
    AccountReply,
    Add,
    Cancel,
    EngineFacts,
    Failed,
    FromEngine,
    GetAccount,
    GetPulse,
    Pulse,
    Ready,
    Shutdown,
    ToEngine,
    Tokens,
)
from ridgeline.state.request import Request, Sampling

FACTS = EngineFacts(
    model="m", name="n", family="llama", is_random=True, vocabulary=10, context=20, context_model=30, eos=(1, 2)
)
REQUEST = Request("a", (1, 2), 3, Sampling(temperature=0.5, logit_bias={4: -1.0}), stop_ids=(2,), arrival_s=1.5)
EVENT = TokenEvent("a", (5,), 2.0, scored=(Scored(5, -0.1, 0, ((5, -0.1),)),), finish="stop")


@pytest.mark.parametrize("message", [Add(REQUEST), Cancel("a"), GetAccount(True), GetPulse(), Shutdown()])
def test_to_the_engine(message: ToEngine) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToEngine) == message


@pytest.mark.parametrize(
    "message",
    [Ready(FACTS), Tokens((EVENT,)), Failed("user", "no", "a"), Failed("internal", "x"), Pulse(2.5, 1, 2, 9, 3, 4, 2)],
)
def test_from_the_engine(message: FromEngine) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=FromEngine) == message


def test_an_account_is_opaque_on_the_way() -> None:
    reply = AccountReply(msgspec.Raw(msgspec.msgpack.encode({"steps": [1, 2]})))
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=FromEngine)
    assert isinstance(back, AccountReply)
    assert msgspec.msgpack.decode(back.account) == {"steps": [1, 2]}


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(Ready(FACTS)), type=ToEngine)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"type": "Add", "request": {}, "more": 1}), type=ToEngine)

"""EngineConfig: every wrong value is refused in a sentence, on either side of the wire."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError


def test_the_defaults_are_good() -> None:
    config = EngineConfig(model="m")
    config.check()
    assert config.storage == "bf16" and config.logit_rows == 64
    assert EngineConfig(model="m", weights="f32").storage == "f32"
    assert EngineConfig(model="m", weights="f32", kv="bf16").storage == "bf16"
    assert EngineConfig(model="m", max_sequences=100).logit_rows == 100


@pytest.mark.parametrize("name", ["threads", "context", "kv_bytes", "max_sequences", "step_tokens", "chunk"])
@pytest.mark.parametrize("value", [0, -1, 1 << 60])
def test_counts_are_positive_and_sane(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}"):
        EngineConfig(model="m", **{name: value}).check()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": ""}, "no model"),
        ({"weights": "int3"}, "unknown weights 'int3'. Known: native"),
        ({"kv": "int3"}, "known: auto, f32, bf16"),
        ({"body": "rust"}, "known: cpp, torch"),
        ({"isa": "mmx"}, "known: plain"),
        ({"policy": "luck"}, "Known: deadline, fair, fcfs, priority, remaining, shortest"),
        ({"step_tokens": 8, "max_sequences": 9}, "owed"),
    ],
)
def test_unknown_names_list_the_known_ones(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        EngineConfig(**{"model": "m"} | fields).check()


def test_a_config_travels_and_unknown_fields_do_not() -> None:
    config = EngineConfig(model="m", chunk=7, batching="static")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=EngineConfig) == config
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"model": "m", "chunks": 7}), type=EngineConfig)

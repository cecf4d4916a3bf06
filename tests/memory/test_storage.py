"""Storages: layouts of the native header, exact round trips, bfloat16 rounding to nearest even."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.storage.bf16 import narrow, widen
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES, token_keys, token_values


def page_of(dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((BLOCK_TOKENS, dim)).astype(np.float32)


def farthest(name: str, tokens: np.ndarray) -> np.ndarray:
    """How far a kept number may be from what it was."""
    if name == "f32":
        return np.zeros_like(tokens)
    if name == "bf16":  # half a unit of 8 bits of significand
        return 2.0**-8 * np.abs(tokens)
    if name == "int8":  # half a step of the token's own scale, which is rounded up in its 16th bit
        return np.abs(tokens).max(-1, keepdims=True) / 254 * 1.0001
    low = tokens.min(-1, keepdims=True) - np.abs(tokens).max() / 128  # int4: the offset is rounded down to bf16
    return (tokens.max(-1, keepdims=True) - low) / 30 * (1 + 2.0**-7)


@pytest.mark.parametrize("name", STORAGES.names())
@pytest.mark.parametrize("dim", [8, 64, 80, 128])
def test_what_was_packed_comes_back_rounded_once(name: str, dim: int) -> None:
    storage, tokens = STORAGES.get(name), page_of(dim)
    for pack, unpack in (
        (storage.pack_keys, storage.unpack_keys),
        (storage.pack_values, storage.unpack_values),
    ):
        page = pack(tokens)
        assert page.dtype == np.uint8 and page.shape == (storage.page_bytes(dim),)
        back = unpack(page, dim)
        assert back.shape == tokens.shape and back.dtype == np.float32
        assert np.all(np.abs(back - tokens) <= farthest(name, tokens))
        if name == "int4":  # packing again may choose another scale, and moves nothing by more than half of it
            assert np.all(np.abs(unpack(pack(back), dim) - back) <= farthest(name, back))
        else:
            assert np.array_equal(unpack(pack(back), dim), back)


@pytest.mark.parametrize("name", STORAGES.names())
def test_bytes_per_token_is_the_pages_share(name: str) -> None:
    storage = STORAGES.get(name)
    assert storage.bytes_per_token(3, 64) * BLOCK_TOKENS == 3 * 2 * storage.page_bytes(64)


def test_f32_layout_is_that_of_the_header() -> None:
    storage, tokens = STORAGES.get("f32"), page_of(6)
    keys = storage.pack_keys(tokens).view(np.float32)
    values = storage.pack_values(tokens).view(np.float32)
    assert keys[4 * BLOCK_TOKENS + 9] == tokens[9, 4]  # [head_dim][tokens]
    assert values[9 * 6 + 4] == tokens[9, 4]  # [tokens][head_dim]


def test_bf16_layout_is_that_of_the_header() -> None:
    storage, tokens = STORAGES.get("bf16"), page_of(6)
    keys, values = storage.pack_keys(tokens).view(np.uint16), storage.pack_values(tokens).view(np.uint16)
    bits = narrow(tokens)
    assert keys[(5 // 2) * BLOCK_TOKENS * 2 + 9 * 2 + 5 % 2] == bits[9, 5]  # [head_dim/2][tokens][2]
    assert values[9 * 6 + 5] == bits[9, 5]


@given(st.integers(0, 2**32 - 1))
def test_bf16_rounds_to_nearest_even(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    got = narrow(value)
    if np.isnan(value[0]):
        assert np.isnan(widen(got)[0])
        return
    low, rest = bits >> 16, bits & 0xFFFF
    up = rest > 0x8000 or (rest == 0x8000 and low & 1)
    assert int(got[0]) == (low + up) & 0xFFFF


def test_bf16_keeps_every_bfloat16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits[~np.isnan(widen(bits))]
    assert np.array_equal(narrow(widen(numbers)), numbers)


@pytest.mark.parametrize("name", STORAGES.names())
def test_a_token_is_the_same_bytes_in_whatever_company_it_is_kept(name: str) -> None:
    """Scales are of one token and head, never of a page (F15): so a token never changes once kept."""
    storage, tokens, others = STORAGES.get(name), page_of(64), page_of(64, 1) * 100
    others[5] = tokens[5]
    keys, values = (
        (view(pack(tokens)), view(pack(others)))
        for pack, view in ((storage.pack_keys, token_keys), (storage.pack_values, token_values))
    )
    for own, other in (keys, values):
        assert np.array_equal(own[5], other[5]) and not np.array_equal(own[4], other[4])


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-38, -1e30])
def test_constant_and_tiny_and_huge_vectors_survive(name: str, value: float) -> None:
    storage = STORAGES.get(name)
    tokens = np.full((BLOCK_TOKENS, 8), value, np.float32)
    back = storage.unpack_values(storage.pack_values(tokens), 8)
    assert np.all(np.abs(back - tokens) <= max(2.0**-7 * abs(value), 1e-30))


def test_bytes_of_a_token_are_those_of_the_formula() -> None:
    bits = {name: STORAGES.get(name).bytes_per_token(1, 64) * 8 / 128 for name in STORAGES.names()}
    assert bits.items() >= {"f32": 32, "bf16": 16, "int8": 8.5, "int4": 4.5}.items()
    for storage in map(STORAGES.get, STORAGES):
        assert storage.bytes_per_token(3, 64) * BLOCK_TOKENS == 2 * 3 * storage.page_bytes(64)


def test_wrong_shapes_are_refused() -> None:
    for name in STORAGES:
        with pytest.raises(InvariantError, match="page holds"):
            STORAGES.get(name).pack_keys(np.zeros((3, 8), np.float32))
    with pytest.raises(InvariantError, match="pairs"):
        STORAGES.get("bf16").page_bytes(5)

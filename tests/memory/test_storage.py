"""Storages: layouts of the native header, exact round trips, bfloat16 rounding to nearest even."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.storage.bf16 import narrow, widen
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES


def page_of(dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((BLOCK_TOKENS, dim)).astype(np.float32)


@pytest.mark.parametrize("name", STORAGES.names())
@pytest.mark.parametrize("dim", [2, 64, 80, 128])
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
        assert np.array_equal(unpack(pack(back), dim), back)
        tolerance = 0.0 if name == "f32" else 2.0**-8  # half a unit of bf16's 8 bits of significand
        assert np.all(np.abs(back - tokens) <= tolerance * np.abs(tokens))


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


def test_wrong_shapes_are_refused() -> None:
    for name in STORAGES:
        with pytest.raises(InvariantError, match="page holds"):
            STORAGES.get(name).pack_keys(np.zeros((3, 8), np.float32))
    with pytest.raises(InvariantError, match="pairs"):
        STORAGES.get("bf16").page_bytes(5)

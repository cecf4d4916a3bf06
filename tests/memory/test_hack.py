"""hack (E7): bytes by the closed form, the identity its products rest on, and who holds which block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.memory.block_memory import BlockMemory
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.pool import BlockPool
from ridgeline.memory.spans import holds_block, kept_blocks
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES, make_storage
from ridgeline.ops.batch import count_pairs
from ridgeline.ops.kv import Reach
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence

BLOCKS = (32, 64)


def reaches_of(group: int, sinks: int = 4) -> tuple[Reach, Reach]:
    return Reach(block=group), Reach(sinks=sinks, block=group, is_recent=True)


@pytest.mark.parametrize("group", BLOCKS)
@pytest.mark.parametrize("dim", [64, 128, 192, 256])
def test_bits_are_those_of_the_formula(group: int, dim: int) -> None:
    """2 + 32 / group for scale and low, + 8 / group for sums (largest 3 * group, a byte): recipe E.4, K and V."""
    storage = make_storage(f"hack:group={group}")
    bits = 2 + 32 / group + 8 / group
    assert 3 * group <= 255
    assert storage.bytes_per_token(2, dim) == 2 * 2 * dim * bits / 8
    assert storage.bytes_per_token(2, dim) * BLOCK_TOKENS == 2 * 2 * storage.page_bytes(dim)
    pages = storage.pack_keys(np.random.default_rng(0).standard_normal((group, dim)).astype(np.float32))
    assert pages.shape == (group // BLOCK_TOKENS, storage.page_bytes(dim))


def test_the_example_of_the_recipe() -> None:
    """Qwen3-8B (36 layers, 8 kv heads of 128) at 4,096 tokens: bf16 keeps 576 MiB; closed pages the formula's share."""
    assert 4096 * 36 * STORAGES.get("bf16").bytes_per_token(8, 128) == 576 << 20
    for group, bits in ((32, 3.25), (64, 2.625)):
        closed = 4096 * 36 * make_storage(f"hack:group={group}").bytes_per_token(8, 128)
        assert closed == (576 << 20) * bits / 16


@given(tokens=st.integers(0, 700), group=st.sampled_from(BLOCKS), sinks=st.sampled_from([0, 4, 15]))
def test_blocks_held_by_the_closed_form(tokens: int, group: int, sinks: int) -> None:
    closed, recent = reaches_of(group, sinks)
    whole = tokens // group * group
    assert kept_blocks(closed, tokens) == whole // 16
    kept = -(-(tokens - whole) // 16) + (1 if sinks and whole else 0)
    assert kept_blocks(recent, tokens) == kept
    for reach, count in ((closed, whole // 16), (recent, kept)):
        assert sum(holds_block(reach, index, tokens) for index in range(60)) == count
    assert closed.kept(tokens) + recent.kept(tokens) == tokens + (min(sinks, whole))  # sinks have their place twice


@given(before=st.integers(0, 300), tokens=st.integers(1, 200), group=st.sampled_from(BLOCKS))
def test_pairs_and_tokens_read_in_bf16(before: int, tokens: int, group: int) -> None:
    recent = reaches_of(group)[1]
    rows = range(before, before + tokens)
    pairs, read = count_pairs(before, tokens, recent)
    assert pairs == sum(t % group + 1 + recent.sinks for t in rows)
    first = before // group * group
    assert read == before + tokens - first + (recent.sinks if first else 0)


@pytest.mark.parametrize("group", BLOCKS)
@pytest.mark.parametrize("is_first", [False, True])
def test_what_was_packed_comes_back_within_half_a_step(group: int, is_first: bool) -> None:
    storage = make_storage(f"hack:group={group},sinks=4")
    block = np.random.default_rng(group).standard_normal((group, 128)).astype(np.float32)
    if is_first:
        block[:4] *= 50  # what sinks are kept apart for
    begin = 4 if is_first else 0
    for pack, unpack, close in (
        (storage.pack_keys, storage.unpack_keys, storage.close_keys),
        (storage.pack_values, storage.unpack_values, storage.close_values),
    ):
        kept = close(block, is_first=is_first)
        back = unpack(pack(block, is_first=is_first), 128)
        np.testing.assert_array_equal(back, kept.codes * kept.scale + kept.low)
        scale = np.broadcast_to(kept.scale, block.shape)
        assert np.all(np.abs(back - block)[begin:] <= scale[begin:] * (0.5 + 2.0**-7))
        assert not kept.codes[:begin].any() and kept.codes.max() == 3
    keys, values = storage.close_keys(block), storage.close_values(block)
    np.testing.assert_array_equal(keys.sums, keys.codes.reshape(group, -1, group).sum(-1).T)
    np.testing.assert_array_equal(values.sums, values.codes.sum(0))


@pytest.mark.parametrize("group", [32, 64])
def test_a_product_of_codes_is_the_product_of_what_they_mean(group: int) -> None:
    """Recipe E.1 at the shapes of the official test: A 8 bits [7, 128], B 2 bits [128, 50] in partitions of `group`."""
    rng = np.random.default_rng(group)
    a, b = rng.standard_normal((7, 128)).astype(np.float32), rng.standard_normal((128, 50)).astype(np.float32)
    total, meant = np.zeros((7, 50), np.float32), np.zeros((7, 50))
    for begin in range(0, 128, group):
        part_a, part_b = a[:, begin : begin + group], b[begin : begin + group]
        low_a, low_b = part_a.min(1, keepdims=True), part_b.min(0, keepdims=True)
        scale_a, scale_b = (part_a.max(1, keepdims=True) - low_a) / 255, (part_b.max(0, keepdims=True) - low_b) / 3
        codes_a = np.rint((part_a - low_a) / scale_a).astype(np.int32)
        codes_b = np.rint((part_b - low_b) / scale_b).astype(np.int32)
        total += scale_a * scale_b * (codes_a @ codes_b) + scale_a * low_b * codes_a.sum(1, keepdims=True)
        total += low_a * scale_b * codes_b.sum(0) + group * low_a * low_b
        meant += (codes_a * scale_a.astype(np.float64) + low_a) @ (codes_b * scale_b.astype(np.float64) + low_b)
    np.testing.assert_allclose(total, meant, rtol=1e-4, atol=1e-3)


def test_options_are_read_and_refused() -> None:
    assert make_storage("hack").name == "hack:group=64,sinks=4"
    assert make_storage(make_storage("hack:group=32").name).group == 32
    for written, said in (
        ("hack:bits=3", "no option 'bits'"), ("hack:group=48", "32 or 64"), ("hack:group=16", "32 or 64"),
        ("hack:sinks=17", "at most 16"),
        ("hack:group=x", "int"), ("int7", "known: auto, f32"), ("int4:group=3", "known: auto, f32"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            make_storage(written)
    with pytest.raises(UserError, match="group=32"):
        make_storage("hack").page_bytes(96)
    with pytest.raises(UserError, match="int4"):
        make_storage("hack").page_bytes(80)
    with pytest.raises(InvariantError, match="a block holds"):
        make_storage("hack").pack_keys(np.zeros((16, 64), np.float32))


# -- tables


def memory_of(group: int, *, alone: str = "off", blocks: int = 60, recent: int = 40) -> BlockMemory:
    pools = (BlockPool(blocks), BlockPool(recent))
    return BlockMemory(pools, context=2048, reaches=reaches_of(group), alone=alone, step_tokens=100)


def sequence_of(number: int, tokens: int, salt: int = 0) -> Sequence:
    prompt = tuple((i * 7 + (salt * 13 if i >= 200 else 0)) % 97 for i in range(tokens))
    return Sequence(number, Request(f"r{number}", prompt, 50), 0.0, list(prompt))


@settings(max_examples=30, deadline=None)
@given(
    group=st.sampled_from(BLOCKS), alone=st.sampled_from(["off", ""]),
    steps=st.lists(st.integers(1, 100), min_size=1, max_size=12),
)  # fmt: skip
def test_tables_hold_what_the_closed_form_says(group: int, alone: str, steps: list[int]) -> None:
    memory = memory_of(group, alone=alone, blocks=100)
    sequence, computed = sequence_of(0, sum(steps) + 1), 0
    memory.admit(sequence)
    for tokens in steps:
        assert memory.reserve(sequence, computed, tokens)
        tables = memory.blocks_of(sequence)
        for index in range(-(-(computed + tokens) // 16)):
            if index < (computed + tokens) // group * (group // 16):
                assert tables[0][index] >= 0
            if index >= computed // group * (group // 16) or index == 0:
                assert tables[1][index] >= 0
        computed += tokens
        memory.advance(sequence, computed)
        memory.check()
        for reach, table in zip(reaches_of(group), memory.blocks_of(sequence), strict=True):
            assert int((table[: -(-computed // 16)] >= 0).sum()) == kept_blocks(reach, computed)
    memory.release(sequence, computed)
    memory.check()
    assert all(pool.held_blocks == 0 for pool in memory.pools)


@pytest.mark.parametrize("group", BLOCKS)
def test_beginnings_are_shared_in_whole_blocks_with_their_sinks(group: int) -> None:
    memory = memory_of(group, alone="")
    first, computed = sequence_of(0, 300), 299
    assert memory.admit(first) == 0
    for begin in range(0, 299, 100):
        assert memory.reserve(first, begin, min(100, 299 - begin))
        memory.advance(first, min(begin + 100, 299))
    again = sequence_of(1, 300)
    shared = memory.admit(again)
    assert shared == 299 // group * group
    own, other = memory.blocks_of(first), memory.blocks_of(again)
    np.testing.assert_array_equal(own[0][: shared // 16], other[0])
    assert other[1][0] == own[1][0] and (other[1][1:] == -1).all()
    memory.release(first, computed)
    memory.check()
    parting = sequence_of(2, 300, salt=1)  # another text from token 200 on
    assert memory.admit(parting) == 200 // group * group
    memory.release(again, shared)
    memory.release(parting, 200 // group * group)
    memory.check()
    assert all(pool.held_blocks == 0 for pool in memory.pools) and memory.pools[1].cached_blocks == 1


def test_cached_blocks_make_way_in_both_pools() -> None:
    memory = memory_of(32, alone="", blocks=20, recent=11)
    for number in range(6):
        prompt = tuple(number * 1000 + i for i in range(200))
        sequence = Sequence(number, Request(f"r{number}", prompt, 8), 0.0, list(prompt))
        computed = memory.admit(sequence)
        assert computed == 0
        for begin in (0, 100):
            assert memory.reserve(sequence, begin, 100)
            memory.advance(sequence, begin + 100)
        memory.release(sequence, 200)
        memory.check()
    assert memory.report()["evicted"]


def test_a_pool_holds_the_bytes_of_the_formula() -> None:
    storage = make_storage("hack:group=32")
    pool = KvPool(storage, layers=3, kv_heads=2, head_dim=64, blocks=5)
    assert pool.nbytes == 5 * 16 * 3 * storage.bytes_per_token(2, 64)

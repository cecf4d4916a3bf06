"""The memory bill: from descriptors, to the byte, and a refusal that names what is short and what it costs to cure."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ridgeline.engine.bill import memory_left
from ridgeline.engine.build import bill, build
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.memory.spans import kept_blocks
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.run.machine import memory_bytes

from .tiny import LLAMA, write_config

GIB = 1 << 30


def test_the_items_are_those_of_closed_forms() -> None:
    """Llama 3 8B in bf16: 8.03e9 parameters of 2 bytes; KV 2 * 32 layers * 8 heads * 128 * 2 bytes a token."""
    made = bill(EngineConfig(model="random:llama-3-8b"), available=64 * GIB)
    assert made.weight_bytes == pytest.approx(8_030_261_248 * 2, rel=1e-4)  # norms are kept in f32
    assert made.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert made.kv_bytes == made.kv_blocks * BLOCK_TOKENS * made.kv_bytes_per_token
    assert made.fits and made.context == 8192 and made.total_bytes <= 64 * GIB
    made.check()


def test_the_pool_takes_what_sequences_can_use_and_no_more() -> None:
    small = bill(EngineConfig(model="random:smollm2-135m", max_sequences=2), available=64 * GIB)
    assert small.kv_blocks == 2 * 8192 // BLOCK_TOKENS
    tight = bill(EngineConfig(model="random:smollm2-135m"), available=2 * GIB)
    assert tight.fits and tight.total_bytes > 2 * GIB - 2 * BLOCK_TOKENS * tight.kv_bytes_per_token


def test_the_context_is_cut_to_the_pool_unless_it_was_asked_for() -> None:
    model = "random:llama-3.1-8b"
    cut = bill(EngineConfig(model=model), available=24 * GIB)
    assert cut.fits and 2048 <= cut.context < 131072
    asked = bill(EngineConfig(model=model, context=131072), available=24 * GIB)
    assert not asked.fits and asked.context == 131072
    with pytest.raises(UserError, match="made for 131072"):
        bill(EngineConfig(model=model, context=131073), available=24 * GIB)


def test_a_model_that_does_not_fit_is_refused_with_the_bill_and_three_cures() -> None:
    before = time.perf_counter()
    made = bill(EngineConfig(model="random:llama-3-70b"), available=24 * GIB)
    assert time.perf_counter() - before < 1.0
    assert made.short_bytes == made.total_bytes - 24 * GIB > 100 * GIB
    with pytest.raises(CapacityError) as refused:
        made.check()
    text = str(refused.value)
    for item in ("weights", "KV", "activations", "reserve", "available", "short by", "price"):
        assert item in text
    assert len(made.cures) == 3 and any(cure.is_enough for cure in made.cures)


def test_a_cure_that_is_enough_is_enough() -> None:
    config = EngineConfig(model="random:smollm2-1.7b", weights="f32", context=8192)
    made = bill(config, available=10 * GIB)
    assert not made.fits and made.cures[0].is_enough
    assert bill(EngineConfig(model="random:smollm2-1.7b", weights="bf16", context=8192), available=10 * GIB).fits


def test_kv_bytes_asked_for_are_kept_or_refused() -> None:
    model = "random:smollm2-135m"
    asked = bill(EngineConfig(model=model, kv_bytes=100 << 20), available=8 * GIB)
    assert asked.kv_bytes <= 100 << 20 < asked.kv_bytes + BLOCK_TOKENS * asked.kv_bytes_per_token
    assert asked.context == asked.kv_blocks * BLOCK_TOKENS
    with pytest.raises(CapacityError, match="Raise kv_bytes"):
        bill(EngineConfig(model=model, kv_bytes=1000), available=8 * GIB)
    with pytest.raises(CapacityError, match="one sequence of 8000"):
        bill(EngineConfig(model=model, kv_bytes=1 << 20, context=8000), available=8 * GIB)
    assert not bill(EngineConfig(model=model, kv_bytes=16 * GIB), available=8 * GIB).fits


def test_memory_left_is_below_all_there_is() -> None:
    assert 0 < memory_left() <= memory_bytes()


def test_the_bill_is_what_the_engine_takes(tmp_path: Path) -> None:
    config = EngineConfig(model=write_config(tmp_path, LLAMA), threads=1, kv_bytes=1 << 22)
    promised = bill(config)
    engine = build(config)
    try:
        facts = engine.facts
        assert (facts.kv_bytes, facts.kv_blocks, facts.context) == (
            promised.kv_bytes, promised.kv_blocks, promised.context,
        )  # fmt: skip
        # packing rounds rows up to tiles and adds f32 copies of a few vectors
        assert promised.weight_bytes <= facts.resident_weight_bytes <= 1.1 * promised.weight_bytes
    finally:
        engine.close()


@pytest.mark.parametrize(("prefix", "groups"), [(True, 1), (False, 2)])
def test_layers_with_windows_get_bounded_pools(prefix: bool, groups: int) -> None:
    """Gemma 3 270M: 15 layers of 18 read 512 tokens. KV(S) = n_g * S + n_l * min(S, W), in whole blocks (K7)."""
    made = bill(EngineConfig(model="random:gemma-3-270m", prefix=prefix, max_sequences=4, chunk=64), available=64 * GIB)
    assert len(made.groups) == groups and made.kv_bytes == sum(group.nbytes for group in made.groups)
    per_layer = 2 * 1 * 256 * 2  # K and V of one head of 256 in bf16
    assert made.kv_bytes_per_token == 18 * per_layer
    if prefix:
        assert str(made).count("layers keep") == 0
        return
    everything, windowed = sorted(made.groups, key=lambda group: group.layers)
    assert (everything.layers, windowed.layers) == (3, 15)
    assert everything.blocks == 4 * 32768 // BLOCK_TOKENS
    assert windowed.blocks == 4 * windowed.most and windowed.most == (512 + 64) // BLOCK_TOKENS + 1
    for tokens in (1, 100, 512, 513, 5000, 32768):
        held = sum(kept_blocks(g.reach, tokens) * g.block_bytes for g in made.groups)
        exact = per_layer * (3 * tokens + 15 * min(tokens, 512))
        assert 0 <= held - exact < 18 * per_layer * 2 * BLOCK_TOKENS
    assert "15 layers keep window:512" in str(made)


def test_a_small_budget_is_shared_by_what_groups_can_use() -> None:
    made = bill(EngineConfig(model="random:gemma-3-270m", prefix=False, kv_bytes=40 << 20), available=64 * GIB)
    everything, windowed = sorted(made.groups, key=lambda group: group.layers)
    assert everything.blocks == windowed.blocks  # short sequences fill both alike
    assert made.kv_bytes <= 40 << 20 < made.kv_bytes + BLOCK_TOKENS * made.kv_bytes_per_token
    assert made.context == everything.blocks * BLOCK_TOKENS

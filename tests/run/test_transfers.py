"""Mover: transfers move exactly the bytes they name."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.kit.errors import CapacityError, InvariantError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.run.transfers import Mover
from ridgeline.state.transfer import CopyBlock, LoadBlock, MoveSaved, MoveTokens, PackTokens, SaveBlock


def pools_of(name: str = "bf16", groups: int = 2, blocks: int = 5) -> tuple[KvPool, ...]:
    """Pools of random bytes that are finite numbers in every storage."""
    draw = np.random.default_rng(0)
    pools = tuple(
        KvPool(STORAGES.get(name), layers=2 + g, kv_heads=2, head_dim=8, blocks=blocks) for g in range(groups)
    )
    for pool in pools:
        pool.data[:] = draw.integers(0, 60, pool.nbytes, np.uint8)
    return pools


def test_a_copied_block_is_the_same_in_every_layer_and_head() -> None:
    pools = pools_of()
    before = [pool.data.copy() for pool in pools]
    mover = Mover(pools)
    mover.run((CopyBlock(1, 3, 0), CopyBlock(1, 0, 4)))  # in order: the second copies what the first brought
    assert np.array_equal(pools[0].data, before[0])
    for layer in range(3):
        for head in range(2):
            for target in (0, 4):
                assert np.array_equal(pools[1].keys(target, layer, head), pools[1].keys(3, layer, head))
                assert np.array_equal(pools[1].values(target, layer, head), pools[1].values(3, layer, head))
    stride = pools[1].block_stride
    assert np.array_equal(pools[1].data[stride : 4 * stride], before[1][stride : 4 * stride])
    assert mover.bytes_moved == 2 * stride


def test_blocks_outside_are_refused() -> None:
    with pytest.raises(InvariantError, match="no page"):
        Mover(pools_of()).run((CopyBlock(0, 1, 5),))


def tokens_of(pool: KvPool, blocks: list[int], layer: int, head: int) -> np.ndarray:
    """[slots, 2, head_dim] of one sequence, as the storage reads them."""
    keys = [pool.storage.unpack_keys(pool.keys(block, layer, head), pool.head_dim) for block in blocks]
    values = [pool.storage.unpack_values(pool.values(block, layer, head), pool.head_dim) for block in blocks]
    return np.stack([np.concatenate(keys), np.concatenate(values)], 1)


@pytest.mark.parametrize("name", STORAGES.names())
def test_tokens_move_as_they_are_stored(name: str) -> None:
    """Not a bit changes on the way, whatever the storage; sources and targets may overlap."""
    pools = pools_of(name)
    pool, blocks = pools[1], [4, 0, 2]
    before = pool.data.copy()
    kept = {place: tokens_of(pool, blocks, *place) for place in np.ndindex(pool.layers, pool.kv_heads)}
    sources, targets = (20, 17, 31, 47), (15, 20, 31, 33)
    Mover(pools).run((MoveTokens(1, np.array(blocks, np.int32), sources, targets),))
    for place, tokens in kept.items():
        expected = tokens.copy()
        expected[list(targets)] = tokens[list(sources)]
        assert np.array_equal(tokens_of(pool, blocks, *place), expected)
    for block in (1, 3):
        stride = pool.block_stride
        assert np.array_equal(pool.block(block), before[block * stride : (block + 1) * stride])


def test_saved_blocks_come_back_from_every_tier(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RIDGELINE_HOME", str(tmp_path))
    pools = pools_of()
    mover = Mover(pools)
    saved = [pool.block(1).copy() for pool in pools]
    mover.run([SaveBlock(g, 1, 7, tier) for g, tier in ((0, "host"), (1, "host"))])
    mover.run([SaveBlock(g, 2, 8, "disk") for g in (0, 1)])
    assert mover.store.nbytes == {name: sum(p.block_stride for p in pools) for name in ("host", "disk")}
    mover.run((MoveSaved(7, "disk"), CopyBlock(0, 0, 1), LoadBlock(0, 7, 3), LoadBlock(1, 7, 0), LoadBlock(1, 8, 4)))
    assert np.array_equal(pools[0].block(3), saved[0]) and np.array_equal(pools[1].block(0), saved[1])
    assert np.array_equal(pools[1].block(4), pools[1].block(2))
    mover.run((MoveSaved(8, ""),))
    with pytest.raises(InvariantError, match="nothing is saved"):
        mover.run((LoadBlock(0, 8, 0),))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
    mover.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_fails_is_said(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("RIDGELINE_HOME", str(tmp_path / "file"))
    with pytest.raises(CapacityError, match="--disk-kv-bytes"):
        Mover(pools_of()).run((SaveBlock(0, 0, 1, "disk"),))


@pytest.mark.parametrize("name", STORAGES.names())
def test_packing_keeps_what_attention_used_most(name: str) -> None:
    """By hand, for every layer and head apart: sinks, the heaviest of the middle (the earlier of equals), the last."""
    draw = np.random.default_rng(1)
    pool = KvPool(STORAGES.get(name), layers=2, kv_heads=3, head_dim=8, blocks=6, has_mass=True)
    pool.data[:] = draw.integers(0, 60, pool.data.size, np.uint8)
    pool.mass[:] = draw.integers(0, 9, pool.mass.shape)  # many equal ones
    blocks, slots, sinks, heavy, recent = [5, 1, 3, 0], 61, 3, 20, 16
    before = {place: tokens_of(pool, blocks, *place) for place in np.ndindex(2, 3)}
    mass = pool.mass[blocks].transpose(1, 2, 0, 3).reshape(2, 3, -1)
    Mover((pool,)).run((PackTokens(0, np.array(blocks, np.int32), slots, sinks, heavy, recent),))
    after = pool.mass[blocks].transpose(1, 2, 0, 3).reshape(2, 3, -1)
    for (layer, head), tokens in before.items():
        middle = sorted(range(sinks, slots - recent), key=lambda slot: (-mass[layer, head, slot], slot))[:heavy]
        kept = [*range(sinks), *sorted(middle), *range(slots - recent, slots)]
        assert np.array_equal(tokens_of(pool, blocks, layer, head)[: len(kept)], tokens[kept])
        assert np.array_equal(after[layer, head, : len(kept)], mass[layer, head, kept])


def test_packing_needs_mass() -> None:
    with pytest.raises(InvariantError, match="keeps none"):
        Mover(pools_of()).run((PackTokens(0, np.arange(4, dtype=np.int32), 60, 4, 8, 16),))

"""Mover: transfers move exactly the bytes they name."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.run.transfers import Mover
from ridgeline.state.transfer import CopyBlock


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

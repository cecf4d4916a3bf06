"""KvPool: the address arithmetic of RlPool, and memory that is zero and lazily given."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import STORAGES

SHAPE = {"layers": 3, "kv_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("name", STORAGES.names())
def test_every_page_is_its_own(name: str) -> None:
    storage = STORAGES.get(name)
    pool = KvPool(storage, **SHAPE, blocks=5)
    assert pool.nbytes == KvPool.bytes_for(storage, **SHAPE, blocks=5)
    assert pool.nbytes == 5 * 16 * 3 * storage.bytes_per_token(2, 8)
    assert not pool.data.any()
    stamp = 0
    for block in range(5):
        for layer in range(3):
            for head in range(2):
                for page in (pool.keys(block, layer, head), pool.values(block, layer, head)):
                    assert not page.any()
                    page.view(np.uint16)[:] = stamp = stamp + 1
    expected = np.repeat(np.arange(1, stamp + 1, dtype=np.uint16), pool.page_bytes // 2)
    assert np.array_equal(pool.data.view(np.uint16), expected)  # block, layer, head, K then V: nothing between


def test_strides_are_those_of_the_header() -> None:
    pool = KvPool(STORAGES.get("bf16"), **SHAPE, blocks=2)
    address = pool.data.ctypes.data
    page = pool.values(1, 2, 1)
    offset = pool.block_stride + 2 * pool.layer_stride + pool.head_stride + pool.page_bytes
    assert page.ctypes.data - address == offset
    assert address % 4096 == 0


def test_pages_outside_are_refused() -> None:
    pool = KvPool(STORAGES.get("f32"), **SHAPE, blocks=2)
    for place in ((2, 0, 0), (-1, 0, 0), (0, 3, 0), (0, 0, 2)):
        with pytest.raises(InvariantError):
            pool.keys(*place)
    with pytest.raises(InvariantError):
        KvPool(STORAGES.get("f32"), **SHAPE, blocks=0)


def test_a_large_pool_costs_nothing_until_it_is_used() -> None:
    pool = KvPool(STORAGES.get("bf16"), layers=32, kv_heads=8, head_dim=128, blocks=2000)  # 4 GB of addresses
    pool.keys(0, 0, 0)[:] = 1
    assert pool.nbytes == 2000 * 16 * 32 * 8 * 128 * 2 * 2

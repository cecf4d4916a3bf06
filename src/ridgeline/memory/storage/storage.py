"""Storage: how a kept token's K and V are stored and read back. One file a storage, one line in STORAGES."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ridgeline.kit.registry import Registry
from ridgeline.ops.protocols import Floats

BLOCK_TOKENS = 16  # tokens in a page; equals RL_BLOCK_TOKENS of the native kernels


class Storage(Protocol):
    """Pages hold BLOCK_TOKENS tokens of one layer and kv head: a K page, then a V page of page_bytes each.

    Layouts are those of kernels/cpp/ridgeline.h (RlPool). determinism: "bitwise", "same-build" or "none".
    """

    name: str
    native: int  # RlStorage number, -1: no native kernel
    determinism: str

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """K and V of one token in one layer."""
        ...

    def page_bytes(self, head_dim: int) -> int: ...

    def pack_keys(self, keys: Floats) -> npt.NDArray[np.uint8]:
        """[BLOCK_TOKENS, head_dim] f32 -> a K page."""
        ...

    def unpack_keys(self, page: npt.NDArray[np.uint8], head_dim: int) -> Floats: ...

    def pack_values(self, values: Floats) -> npt.NDArray[np.uint8]: ...

    def unpack_values(self, page: npt.NDArray[np.uint8], head_dim: int) -> Floats: ...


STORAGES: Registry[Storage] = Registry(
    "KV storage",
    __package__,
    {
        "f32": ".f32:STORAGE",
        "bf16": ".bf16:STORAGE",
    },
)

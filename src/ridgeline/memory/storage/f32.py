"""f32: kept tokens stored as they were computed. Exact; twice the bytes of bf16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.protocols import Floats

from .storage import BLOCK_TOKENS, Storage


class F32Storage:
    """K page f32 [head_dim][BLOCK_TOKENS], V page f32 [BLOCK_TOKENS][head_dim]."""

    name = "f32"
    native = 0  # RL_KV_F32
    determinism = "bitwise"

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        return 2 * kv_heads * head_dim * 4

    def page_bytes(self, head_dim: int) -> int:
        return BLOCK_TOKENS * head_dim * 4

    def pack_keys(self, keys: Floats) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(_page(keys).T).view(np.uint8).reshape(-1)

    def unpack_keys(self, page: npt.NDArray[np.uint8], head_dim: int) -> Floats:
        return np.ascontiguousarray(page.view(np.float32).reshape(head_dim, BLOCK_TOKENS).T)

    def pack_values(self, values: Floats) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(_page(values)).view(np.uint8).reshape(-1)

    def unpack_values(self, page: npt.NDArray[np.uint8], head_dim: int) -> Floats:
        return page.view(np.float32).reshape(BLOCK_TOKENS, head_dim).copy()


def _page(tokens: Floats) -> Floats:
    if tokens.ndim != 2 or tokens.shape[0] != BLOCK_TOKENS:
        raise InvariantError(f"a page holds [{BLOCK_TOKENS}, head_dim], not {list(tokens.shape)}")
    return tokens.astype(np.float32, copy=False)


STORAGE: Storage = F32Storage()

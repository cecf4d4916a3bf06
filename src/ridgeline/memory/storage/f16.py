"""f16: kept tokens rounded to IEEE half precision. The bytes of bf16, three more bits of fraction, a smaller range."""

from __future__ import annotations

import numpy as np

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.protocols import Floats

from .storage import Bytes, Storage, key_page, token_keys, token_values, value_page

LARGEST = np.float32(65504)  # beyond it values saturate: infinity would turn attention into NaN


class F16Storage:
    """Row of a token: f16 [head_dim]. K page [4-byte units][16 tokens], V page [16 rows]."""

    name = "f16"
    native = -1  # no kernel reads it yet: attention runs its reference body
    determinism = "bitwise"

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        return 2 * kv_heads * head_dim * 2

    def page_bytes(self, head_dim: int) -> int:
        if head_dim % 2:
            raise InvariantError(f"f16 pages hold pairs of dimensions; head_dim is {head_dim}")
        return 16 * head_dim * 2

    def pack_keys(self, keys: Floats) -> Bytes:
        return key_page(_rows(keys))

    def unpack_keys(self, page: Bytes, head_dim: int) -> Floats:
        return np.ascontiguousarray(token_keys(page)).view(np.float16).astype(np.float32)

    def pack_values(self, values: Floats) -> Bytes:
        return value_page(_rows(values))

    def unpack_values(self, page: Bytes, head_dim: int) -> Floats:
        return token_values(page).view(np.float16).astype(np.float32)


def _rows(x: Floats) -> Bytes:
    """[tokens, head_dim] -> [tokens, 2 head_dim] bytes."""
    return np.clip(x, -LARGEST, LARGEST).astype(np.float16).view(np.uint8)


STORAGE: Storage = F16Storage()

"""int8: each kept vector as int8 with one scale, per token and head, symmetric (F15). Half the bytes of bf16, and 4."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.protocols import Floats

from .storage import Bytes, Storage, key_page, token_keys, token_values, value_page

LEVELS = np.float32(127)
LEAST = np.float32(1e-30)  # scales below are 0: what they would keep is nothing


class Int8Storage:
    """Row of a token: int8 [head_dim], f32 scale; x = q * scale. K page [4-byte units][16 tokens], V page [16 rows].

    The scale is the largest |x| / 127 rounded up to 16 bits of significand: products are exact, so reading and keeping
    again changes nothing.
    """

    name = "int8"
    native = 2  # RL_KV_INT8
    determinism = "bitwise"

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        return 2 * kv_heads * (head_dim + 4)

    def page_bytes(self, head_dim: int) -> int:
        if head_dim % 4:
            raise InvariantError(f"int8 pages hold fours of dimensions; head_dim is {head_dim}")
        return 16 * (head_dim + 4)

    def pack_keys(self, keys: Floats) -> Bytes:
        return key_page(_rows(keys))

    def unpack_keys(self, page: Bytes, head_dim: int) -> Floats:
        return _floats(np.ascontiguousarray(token_keys(page)).view(np.uint8), head_dim)

    def pack_values(self, values: Floats) -> Bytes:
        return value_page(_rows(values))

    def unpack_values(self, page: Bytes, head_dim: int) -> Floats:
        return _floats(token_values(page), head_dim)


def _rows(x: Floats) -> Bytes:
    """[tokens, head_dim] -> [tokens, head_dim + 4] bytes."""
    scale = np.asarray(np.abs(x).max(-1, keepdims=True) / LEVELS, np.float32)
    rounded = (scale.view(np.uint32) + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)
    scale = np.where(scale > LEAST, rounded, np.uint32(0)).astype(np.uint32).view(np.float32)
    quants = np.rint(x * _inverse(scale)).astype(np.int8)
    return np.concatenate([quants.view(np.uint8), scale.view(np.uint8)], -1)


def _floats(rows: Bytes, head_dim: int) -> Floats:
    scale = np.ascontiguousarray(rows[:, head_dim:]).view(np.float32)
    return np.ascontiguousarray(rows[:, :head_dim]).view(np.int8).astype(np.float32) * scale


def _inverse(scale: Floats) -> npt.NDArray[np.float32]:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)


STORAGE: Storage = Int8Storage()

"""int4: each kept vector as 4 bits a dimension with scale and offset, per token and head, asymmetric (F15)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.protocols import Floats

from .bf16 import widen
from .storage import Bytes, Storage, key_page, token_keys, token_values, value_page

LEVELS = np.float32(15)
LEAST = np.float32(1e-30)  # scales below are 0: what they would tell apart is nothing


class Int4Storage:
    """Row of a token: 4 bits [head_dim] (low half of a byte first), bf16 scale, bf16 low; x = q * scale + low.

    Half a byte a dimension and 4 bytes: 4.5 bits at 64 dimensions. low is rounded down and scale up, so nothing is cut
    off and every error is at most half a scale. K page [units of 4 bytes][16 tokens], V page [tokens][row].
    """

    name = "int4"
    native = 3  # RL_KV_INT4
    determinism = "bitwise"

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        return 2 * kv_heads * (head_dim // 2 + 4)

    def page_bytes(self, head_dim: int) -> int:
        if head_dim % 8:
            raise InvariantError(f"int4 pages hold eights of dimensions; head_dim is {head_dim}")
        return 16 * (head_dim // 2 + 4)

    def pack_keys(self, keys: Floats) -> Bytes:
        return key_page(_rows(keys))

    def unpack_keys(self, page: Bytes, head_dim: int) -> Floats:
        return _floats(np.ascontiguousarray(token_keys(page)).view(np.uint8), head_dim)

    def pack_values(self, values: Floats) -> Bytes:
        return value_page(_rows(values))

    def unpack_values(self, page: Bytes, head_dim: int) -> Floats:
        return _floats(token_values(page), head_dim)


def _rows(x: Floats) -> Bytes:
    """[tokens, head_dim] -> [tokens, head_dim / 2 + 4] bytes."""
    low = toward(x.min(-1, keepdims=True), up=False)
    scale = toward((x.max(-1, keepdims=True) - widen(low)) / LEVELS, up=True)
    step = widen(scale)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > LEAST)
    quants = np.rint(np.clip((x - widen(low)) * inverse, 0, LEVELS)).astype(np.uint8)
    pair = np.concatenate([scale, low], -1).view(np.uint8)
    return np.concatenate([quants[:, 0::2] | quants[:, 1::2] << 4, pair], -1)


def _floats(rows: Bytes, head_dim: int) -> Floats:
    halves = rows[:, : head_dim // 2]
    quants = np.stack([halves & 15, halves >> 4], -1).reshape(len(rows), head_dim)
    pair = widen(np.ascontiguousarray(rows[:, head_dim // 2 :]).view(np.uint16))
    return quants.astype(np.float32) * pair[:, :1] + pair[:, 1:]


def toward(x: Floats, *, up: bool) -> npt.NDArray[np.uint16]:
    """bfloat16 bits not below (up) or not above x."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    away = (bits >> np.uint32(31) == 0) == up
    return ((bits + np.where(away, np.uint32(0xFFFF), np.uint32(0))) >> np.uint32(16)).astype(np.uint16)


STORAGE: Storage = Int4Storage()

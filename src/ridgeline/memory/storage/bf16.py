"""bf16: kept tokens rounded to the nearest bfloat16 (ties to even), kept as uint16 since NumPy has no bfloat16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.protocols import Floats

from .storage import BLOCK_TOKENS, Storage


class Bf16Storage:
    """K page bf16 [head_dim/2][BLOCK_TOKENS][2] (pairs, as vdpbf16ps reads them); V page [BLOCK_TOKENS][head_dim]."""

    name = "bf16"
    native = 1  # RL_KV_BF16
    determinism = "bitwise"

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        return 2 * kv_heads * head_dim * 2

    def page_bytes(self, head_dim: int) -> int:
        if head_dim % 2:
            raise InvariantError(f"bf16 pages hold pairs of dimensions; head_dim is {head_dim}")
        return BLOCK_TOKENS * head_dim * 2

    def pack_keys(self, keys: Floats) -> npt.NDArray[np.uint8]:
        pairs = _page(keys).reshape(BLOCK_TOKENS, -1, 2).transpose(1, 0, 2)  # [head_dim/2, tokens, 2]
        return np.ascontiguousarray(pairs).view(np.uint8).reshape(-1)

    def unpack_keys(self, page: npt.NDArray[np.uint8], head_dim: int) -> Floats:
        pairs = page.view(np.uint16).reshape(head_dim // 2, BLOCK_TOKENS, 2)
        return widen(pairs.transpose(1, 0, 2).reshape(BLOCK_TOKENS, head_dim))

    def pack_values(self, values: Floats) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(_page(values)).view(np.uint8).reshape(-1)

    def unpack_values(self, page: npt.NDArray[np.uint8], head_dim: int) -> Floats:
        return widen(page.view(np.uint16).reshape(BLOCK_TOKENS, head_dim))


def narrow(values: Floats) -> npt.NDArray[np.uint16]:
    """f32 -> bfloat16 bits, nearest, ties to even; NaN stays NaN, overflow becomes infinity."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def widen(bits: npt.NDArray[np.uint16]) -> Floats:
    """bfloat16 bits -> f32, exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _page(tokens: Floats) -> npt.NDArray[np.uint16]:
    if tokens.ndim != 2 or tokens.shape[0] != BLOCK_TOKENS:
        raise InvariantError(f"a page holds [{BLOCK_TOKENS}, head_dim], not {list(tokens.shape)}")
    return narrow(tokens)


STORAGE: Storage = Bf16Storage()

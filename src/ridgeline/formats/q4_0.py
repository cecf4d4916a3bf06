"""q4_0: 32 values = f16 scale, 16 bytes of nibbles; value = scale * (nibble - 8). GGUF's block."""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes
from .half import check_finite, join_nibbles, read_half, reciprocal, split_nibbles, write_half


def unpack_blocks(data: Bytes) -> Floats:
    return read_half(data[:, :2]) * (split_nibbles(data[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def pack_blocks(values: Floats) -> Bytes:
    """Scale = the value of largest magnitude / -8, as ggml's reference quantiser does."""
    check_finite(values, "q4_0")
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    scale = extreme / np.float32(-8)
    levels = np.trunc(values * reciprocal(scale) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([write_half(scale, "q4_0"), join_nibbles(levels)], axis=1)


FORMAT = BlockFormat("q4_0", 32, 18, unpack_blocks, pack_blocks, native=4)

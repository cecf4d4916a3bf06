"""q4_1: 32 values = f16 scale, f16 minimum, 16 bytes of nibbles; value = scale * nibble + minimum. GGUF's block."""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes
from .half import check_finite, join_nibbles, read_half, reciprocal, split_nibbles, write_half


def unpack_blocks(data: Bytes) -> Floats:
    return read_half(data[:, :2]) * split_nibbles(data[:, 4:]).astype(np.float32) + read_half(data[:, 2:4])


def pack_blocks(values: Floats) -> Bytes:
    """Scale = range / 15, rounding half up, as ggml's reference quantiser does."""
    check_finite(values, "q4_1")
    low = values.min(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        scale = (values.max(axis=1, keepdims=True) - low) / np.float32(15)
    halves = np.concatenate([write_half(scale, "q4_1"), write_half(low, "q4_1")], axis=1)
    levels = np.trunc((values - low) * reciprocal(scale) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([halves, join_nibbles(levels)], axis=1)


FORMAT = BlockFormat("q4_1", 32, 20, unpack_blocks, pack_blocks, native=3)

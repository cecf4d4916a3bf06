"""q5_0: 32 values = f16 scale, 32 high bits, 16 bytes of nibbles; value = scale * (5-bit - 16). GGUF's block."""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes
from .half import check_finite, join_nibbles, read_half, reciprocal, split_nibbles, write_half


def unpack_blocks(data: Bytes) -> Floats:
    high = np.unpackbits(data[:, 2:6], axis=1, bitorder="little") << 4
    levels = (split_nibbles(data[:, 6:]) | high).astype(np.int8) - np.int8(16)
    return read_half(data[:, :2]) * levels.astype(np.float32)


def pack_blocks(values: Floats) -> Bytes:
    """Scale = the value of largest magnitude / -16, as ggml's reference quantiser does."""
    check_finite(values, "q5_0")
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1, keepdims=True), axis=1)
    scale = extreme / np.float32(-16)
    levels = np.trunc(values * reciprocal(scale) + np.float32(16.5)).clip(0, 31).astype(np.uint8)
    high = np.packbits(levels >> 4, axis=1, bitorder="little")
    return np.concatenate([write_half(scale, "q5_0"), high, join_nibbles(levels & 0x0F)], axis=1)


FORMAT = BlockFormat("q5_0", 32, 22, unpack_blocks, pack_blocks, native=5)

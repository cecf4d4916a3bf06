"""q8_0: 32 values = f16 scale, 32 signed bytes; value = scale * byte. GGUF's block, bit for bit."""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes
from .half import check_finite, read_half, reciprocal, write_half


def unpack_blocks(data: Bytes) -> Floats:
    return read_half(data[:, :2]) * data[:, 2:].view(np.int8).astype(np.float32)


def pack_blocks(values: Floats) -> Bytes:
    """Scale = largest magnitude / 127, rounding half away from zero, as ggml's reference quantiser does."""
    check_finite(values, "q8_0")
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scaled = values * reciprocal(scale)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    levels = np.sign(scaled) * (whole + np.floor(2 * (magnitude - whole)))
    return np.concatenate([write_half(scale, "q8_0"), levels.astype(np.int8).view(np.uint8)], axis=1)


FORMAT = BlockFormat("q8_0", 32, 34, unpack_blocks, pack_blocks, native=2)

"""q6_k: 256 values in 16 groups of 16, each with a signed 8-bit scale under one f16 factor. Read-only.

value = d * scale * (6-bit - 32). GGUF's block: 128 bytes of low nibbles, 64 of high bit pairs, 16 scales, d.
"""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes
from .half import read_half

SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)


def unpack_blocks(data: Bytes) -> Floats:
    low = data[:, :128].reshape(-1, 2, 1, 64)
    nibbles = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(-1, 8, 32)
    high = ((data[:, 128:192].reshape(-1, 2, 1, 32) >> SHIFTS) & 0x03).reshape(-1, 8, 32)
    levels = (nibbles | (high << 4)).astype(np.int8) - np.int8(32)
    scale = read_half(data[:, 208:210]) * data[:, 192:208].view(np.int8).astype(np.float32)
    values: Floats = scale[:, :, None] * levels.reshape(-1, 16, 16).astype(np.float32)
    return values.reshape(-1, 256)


FORMAT = BlockFormat("q6_k", 256, 210, unpack_blocks, native=7)

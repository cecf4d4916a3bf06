"""q4_k: 256 values in 8 groups of 32, each with a 6-bit scale and a 6-bit minimum under two f16 factors. Read-only.

value = d * scale * nibble - dmin * minimum. GGUF's block: d, dmin, 12 bytes of scales and minima, 128 of nibbles.
"""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes
from .half import read_half


def scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """[blocks, 12] -> two [blocks, 8] of 0..63: the last four groups keep their two top bits with the first four."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)], axis=1)
    minima = np.concatenate([second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)], axis=1)
    return scales, minima


def unpack_blocks(data: Bytes) -> Floats:
    scales, minima = scales_and_minima(data[:, 4:16])
    scale = (read_half(data[:, 0:2]) * scales.astype(np.float32))[:, :, None]
    minimum = (read_half(data[:, 2:4]) * minima.astype(np.float32))[:, :, None]
    pairs = data[:, 16:].reshape(-1, 4, 1, 32)  # a group of 32 in the low nibbles, the next in the high ones
    levels = np.concatenate([pairs & 0x0F, pairs >> 4], axis=2).reshape(-1, 8, 32)
    return (scale * levels.astype(np.float32) - minimum).reshape(-1, 256)


FORMAT = BlockFormat("q4_k", 256, 144, unpack_blocks, native=6)

"""IEEE half-precision scales inside blocks: read as f32, written with overflow refused."""

from __future__ import annotations

import numpy as np

from ridgeline.kit.errors import UserError
from ridgeline.ops.protocols import Floats

from .format import Bytes

# Below this the reciprocal of an f32 scale overflows; f16 stores such a scale as zero anyway.
SMALLEST_SCALE = np.float32(1e-37)


def read_half(data: Bytes) -> Floats:
    """[blocks, 2] u8 -> [blocks, 1] f32."""
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)


def write_half(values: Floats, format_name: str) -> Bytes:
    """[blocks, 1] f32 -> [blocks, 2] u8. UserError for NaN, infinity, or more than f16 holds (65,504)."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise UserError(
            f"{format_name} keeps a scale per group as a 16-bit float (at most 65,504); these weights hold NaN, "
            "infinity or larger values. Keep this tensor in f32 or bf16."
        )
    return halves.view(np.uint8)


def reciprocal(scale: Floats) -> Floats:
    """1 / scale, 0 where the scale is 0 or too small to matter."""
    usable = np.abs(scale) >= SMALLEST_SCALE
    return np.where(usable, np.float32(1) / np.where(usable, scale, np.float32(1)), np.float32(0))


def check_finite(values: Floats, format_name: str) -> None:
    if not np.isfinite(values).all():
        raise UserError(f"{format_name} cannot store NaN or infinity. Keep this tensor in f32 or bf16.")


def split_nibbles(packed: Bytes) -> Bytes:
    """[blocks, n] -> [blocks, 2 n]: low nibbles first, then high ones (GGUF order)."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def join_nibbles(values: Bytes) -> Bytes:
    """[blocks, 2 n] of 0..15 -> [blocks, n]."""
    half = values.shape[-1] // 2
    joined: Bytes = values[:, :half] | (values[:, half:] << np.uint8(4))
    return joined

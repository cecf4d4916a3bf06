"""bf16: the upper half of an f32, rounded to nearest even; NaN stays NaN (quiet)."""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes


def unpack_blocks(data: Bytes) -> Floats:
    return (data.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def pack_blocks(values: Floats) -> Bytes:
    bits = np.ascontiguousarray(values).view(np.uint32)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    # NaN is replaced before rounding, so the addition below cannot wrap
    finite = np.where(is_nan, np.uint32(0), bits)
    rounded = (finite + np.uint32(0x7FFF) + ((finite >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(is_nan, quiet, rounded).astype(np.uint16).view(np.uint8)


FORMAT = BlockFormat("bf16", 1, 2, unpack_blocks, pack_blocks, native=1)

"""f32: IEEE single precision, little-endian; the bits as they are."""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes


def unpack_blocks(data: Bytes) -> Floats:
    return data.view(np.float32)


def pack_blocks(values: Floats) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8)


FORMAT = BlockFormat("f32", 1, 4, unpack_blocks, pack_blocks, native=0)

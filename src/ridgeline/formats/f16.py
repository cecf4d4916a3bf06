"""f16: IEEE half precision, little-endian. Values beyond 65,504 are refused, not turned into infinity."""

from __future__ import annotations

import numpy as np

from ridgeline.ops.protocols import Floats

from .format import BlockFormat, Bytes
from .half import write_half


def unpack_blocks(data: Bytes) -> Floats:
    return data.view(np.float16).astype(np.float32)


def pack_blocks(values: Floats) -> Bytes:
    return write_half(values, "f16")


FORMAT = BlockFormat("f16", 1, 2, unpack_blocks, pack_blocks, native=14)

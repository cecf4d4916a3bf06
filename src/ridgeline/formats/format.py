"""The table of weight formats, and BlockFormat: the one shape all of them have.

A format is one file: two functions over blocks and a FORMAT. Bytes are those of the file formats that carry them
(GGUF blocks, safetensors elements), so a loaded file is used as it lies on disk. Refuses what cannot be stored exactly
as the format says: ragged columns, NaN, values whose scale overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import UserError
from ridgeline.kit.registry import Registry
from ridgeline.ops.protocols import Floats, Format

Bytes = npt.NDArray[np.uint8]
CHUNK_VALUES = 1 << 20  # values packed or unpacked at a time: temporaries stay in the tens of megabytes


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """`group` consecutive values of a row are stored in `block_bytes` bytes.

    unpack_blocks: [blocks, block_bytes] u8 -> [blocks, group] f32. pack_blocks: the way back; None: read-only here.
    """

    name: str
    group: int
    block_bytes: int
    unpack_blocks: Callable[[Bytes], Floats]
    pack_blocks: Callable[[Floats], Bytes] | None = None

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes of [rows, columns]; UserError when the columns do not fill whole groups."""
        if columns % self.group:
            raise UserError(
                f"{self.name} stores groups of {self.group} columns; a matrix of {columns} columns does not fit. "
                "Use f32 or bf16 for it."
            )
        return rows * (columns // self.group) * self.block_bytes

    def pack(self, values: Floats) -> Bytes:
        """[rows, columns] f32 -> [nbytes] u8 in file order. UserError for NaN, infinity and read-only formats."""
        if self.pack_blocks is None:
            raise UserError(f"{self.name} can be read but not written. Convert to q4_1 or q8_0 instead.")
        rows, columns = values.shape
        packed = np.empty(self.nbytes(rows, columns), np.uint8)
        blocks = np.ascontiguousarray(values, np.float32).reshape(-1, self.group)
        target = packed.reshape(-1, self.block_bytes)
        step = max(1, CHUNK_VALUES // self.group)
        for start in range(0, len(blocks), step):
            target[start : start + step] = self.pack_blocks(blocks[start : start + step])
        return packed

    def unpack(self, data: Bytes, rows: int, columns: int) -> Floats:
        """[nbytes] u8 in file order -> [rows, columns] f32, exactly what the bits mean."""
        expected = self.nbytes(rows, columns)
        if data.size != expected:
            raise UserError(f"{self.name} [{rows}, {columns}] is {expected} bytes, not {data.size}.")
        values = np.empty((rows, columns), np.float32)
        target = values.reshape(-1, self.group)
        blocks = data.reshape(-1, self.block_bytes)
        step = max(1, CHUNK_VALUES // self.group)
        for start in range(0, len(blocks), step):
            target[start : start + step] = self.unpack_blocks(np.ascontiguousarray(blocks[start : start + step]))
        return values


FORMATS: Registry[Format] = Registry(
    "weight format",
    __package__,
    {
        "f32": ".f32:FORMAT",
        "f16": ".f16:FORMAT",
        "bf16": ".bf16:FORMAT",
        "q8_0": ".q8_0:FORMAT",
        "q4_0": ".q4_0:FORMAT",
        "q4_1": ".q4_1:FORMAT",
        "q5_0": ".q5_0:FORMAT",
        "q4_k": ".q4_k:FORMAT",
        "q6_k": ".q6_k:FORMAT",
    },
)

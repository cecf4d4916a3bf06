"""The table of weight formats, and BlockFormat: the one shape all of them have.

A format is one file: two functions over blocks and a FORMAT. Bytes are those of the file formats that carry them
(GGUF blocks, safetensors elements), so a loaded file is used as it lies on disk. Refuses what cannot be stored exactly
as the format says: ragged columns, NaN, values whose scale overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import UserError
from ridgeline.kit.registry import Registry
from ridgeline.ops.protocols import Floats, Format

Bytes = npt.NDArray[np.uint8]
T = TypeVar("T")
CHUNK_VALUES = 1 << 20  # values packed or unpacked at a time: temporaries stay in the tens of megabytes


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """`group` consecutive values of a row are stored in `block_bytes` bytes.

    unpack_blocks: [blocks, block_bytes] u8 -> [blocks, group] f32. pack_blocks: the way back; None: read-only here.
    native: RlFormat (kernels/cpp/ridgeline.h), -1: no native body.
    """

    name: str
    group: int
    block_bytes: int
    unpack_blocks: Callable[[Bytes], Floats]
    pack_blocks: Callable[[Floats], Bytes] | None = None
    native: int = -1
    by_rows: bool = True

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


class FormatTable(Registry[Format]):
    """The one reader of format names: `int4:group=128,zero=1` is the format int4 with options of its own."""

    def get(self, name: str) -> Format:
        stem, colon, text = name.partition(":")
        format = super().get(stem)
        if not colon:
            return format
        configured: Callable[[Mapping[str, str]], Format] | None = getattr(format, "configured", None)
        if configured is None:
            raise UserError(f"the weight format {stem} has no options; {name!r} gives some.")
        options: dict[str, str] = {}
        for part in text.split(","):
            option, equals, value = part.partition("=")
            if not equals or option in options:
                raise UserError(f"{name!r}: options are written like {stem}:name=value,name=value, each once.")
            options[option] = value
        try:
            return configured(options)
        except UserError as error:
            raise UserError(f"{name!r}: {error}") from error


def number(text: str, least: int, most: int) -> int:
    """An option's whole number. UserError outside the range."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise UserError(f"{text!r} must be a whole number from {least} to {most}.")
    return int(text)


def choice(text: str, known: Mapping[str, T]) -> T:
    """An option's meaning by its word. UserError names the known ones."""
    if text not in known:
        raise UserError(f"{text!r} is none of {', '.join(known)}.")
    return known[text]


FORMATS = FormatTable(
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
        "int8": ".int8:FORMAT",
        "int4": ".int4:FORMAT",
        "fp8": ".fp8:FORMAT",
    },
)

"""Weights from file order into the tiles the native linears read, and back, bit for bit (layouts: cpp/pack.cpp)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.ops.protocols import Format

from . import native

Bytes = npt.NDArray[np.uint8]

GROUP = 32  # RL_GROUP
FLOATING = (native.RL_F32, native.RL_BF16, native.RL_F16, native.RL_E4M3, native.RL_E5M2)


def reads_integers(format: Format) -> bool:
    """Whether its native linears read activations as integers (cpp/quantise.h)."""
    return format.native >= 0 and format.native & 255 not in FLOATING


def has_body(format: Format, columns: int) -> bool:
    """Whether native bodies multiply rows of so many columns on their stored bits."""
    return format.native >= 0 and (columns % GROUP == 0 or not reads_integers(format))


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """data: [bytes], 64-byte aligned; rows are padded to 16, nothing else is added."""

    data: Bytes
    format: Format
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def unpack(self) -> Bytes:
        """The bytes that went in, in file order."""
        source = np.empty(self.format.nbytes(self.rows, self.columns), np.uint8)
        if native.library().rl_unpack(
            self.format.native, self.data.ctypes.data, self.rows, self.columns, source.ctypes.data
        ):
            raise InvariantError(f"a packed {self.format.name} [{self.rows}, {self.columns}] cannot be unpacked")
        return source


def pack(data: Bytes | None, format: Format, rows: int, columns: int) -> PackedWeight:
    """Bytes in file order -> tiles. UserError for a format without a native body or data of the wrong size."""
    name = format.name
    if format.native < 0:
        raise UserError(f"no native kernel reads {name}. Try --weights bf16.")
    if data is None:
        raise InvariantError(f"a {name} [{rows}, {columns}] descriptor has no bytes to pack")
    size = int(native.library().rl_packed_bytes(format.native, rows, columns))
    if size < 0:
        group = max(GROUP, format.group)
        raise UserError(f"{name} needs columns in groups of {group}; a weight of [{rows}, {columns}] has none.")
    source = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    if source.nbytes != format.nbytes(rows, columns):
        raise UserError(f"{name} [{rows}, {columns}] is {format.nbytes(rows, columns)} bytes, not {source.nbytes}.")
    packed = native.aligned(size)
    if native.library().rl_pack(format.native, source.ctypes.data, rows, columns, packed.ctypes.data):
        raise InvariantError(f"{name} [{rows}, {columns}] cannot be packed")
    return PackedWeight(packed, format, rows, columns)


def pack_stack(data: Bytes | None, format: Format, rows: int, columns: int, count: int) -> PackedWeight:
    """`count` matrices of [rows / count, columns], one below the other, each packed by itself, side by side (K8)."""
    if data is None:
        raise InvariantError(f"a {format.name} [{rows}, {columns}] descriptor has no bytes to pack")
    parts = np.ascontiguousarray(data).view(np.uint8).reshape(count, -1)
    packed: Bytes | None = None
    for index, part in enumerate(parts):
        one = pack(part, format, rows // count, columns).data
        packed = native.aligned(count * one.nbytes) if packed is None else packed
        packed[index * one.nbytes : (index + 1) * one.nbytes] = one
    if packed is None:
        raise InvariantError(f"a stack of no {format.name} matrices")
    return PackedWeight(packed, format, rows, columns)

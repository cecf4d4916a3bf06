"""Weights from file order into the tiles the native linears read, and back, bit for bit (layouts: cpp/pack.cpp)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError, UserError

from . import native

Bytes = npt.NDArray[np.uint8]

# Formats the native bodies multiply on their own bits: name -> RlFormat.
NATIVE_FORMATS = {
    "f32": native.RL_F32, "bf16": native.RL_BF16, "q8_0": native.RL_Q8_0, "q4_1": native.RL_Q4_1,
    "q4_0": native.RL_Q4_0, "q5_0": native.RL_Q5_0, "q4_k": native.RL_Q4_K, "q6_k": native.RL_Q6_K,
}  # fmt: skip
BLOCKS = {  # columns in a block, bytes of one in a file (kernels.h has the same)
    "f32": (1, 4), "bf16": (1, 2), "q8_0": (32, 34), "q4_1": (32, 20),
    "q4_0": (32, 18), "q5_0": (32, 22), "q4_k": (256, 144), "q6_k": (256, 210),
}  # fmt: skip
# Those whose linears read activations as integers.
QUANTISED_FORMATS = frozenset(name for name, (columns, _) in BLOCKS.items() if columns > 1)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """data: [bytes], 64-byte aligned; rows are padded to 16, nothing else is added."""

    data: Bytes
    format_name: str
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def unpack(self) -> Bytes:
        """The bytes that went in, in file order."""
        number = NATIVE_FORMATS[self.format_name]
        source = np.empty(file_bytes(self.format_name, self.rows, self.columns), np.uint8)
        if native.library().rl_unpack(number, self.data.ctypes.data, self.rows, self.columns, source.ctypes.data):
            raise InvariantError(f"a packed {self.format_name} [{self.rows}, {self.columns}] cannot be unpacked")
        return source


def pack(data: Bytes | None, format_name: str, rows: int, columns: int) -> PackedWeight:
    """Bytes in file order -> tiles. UserError for a format without a native body or data of the wrong size."""
    if format_name not in NATIVE_FORMATS:
        raise UserError(
            f"no native kernel reads {format_name}. Known: {', '.join(NATIVE_FORMATS)}. Try --weights bf16."
        )
    if data is None:
        raise InvariantError(f"a {format_name} [{rows}, {columns}] descriptor has no bytes to pack")
    number = NATIVE_FORMATS[format_name]
    size = int(native.library().rl_packed_bytes(number, rows, columns))
    if size < 0:
        group = BLOCKS[format_name][0]
        raise UserError(f"{format_name} needs columns in groups of {group}; a weight of [{rows}, {columns}] has none.")
    source = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    if source.nbytes != file_bytes(format_name, rows, columns):
        raise UserError(f"{format_name} [{rows}, {columns}] is {file_bytes(format_name, rows, columns)} bytes, "
                        f"not {source.nbytes}.")  # fmt: skip
    packed = native.aligned(size)
    if native.library().rl_pack(number, source.ctypes.data, rows, columns, packed.ctypes.data):
        raise InvariantError(f"{format_name} [{rows}, {columns}] cannot be packed")
    return PackedWeight(packed, format_name, rows, columns)


def pack_stack(data: Bytes | None, format_name: str, rows: int, columns: int, count: int) -> PackedWeight:
    """`count` matrices of [rows / count, columns], one below the other, each packed by itself, side by side (K8)."""
    if data is None:
        raise InvariantError(f"a {format_name} [{rows}, {columns}] descriptor has no bytes to pack")
    parts = np.ascontiguousarray(data).view(np.uint8).reshape(count, -1)
    packed: Bytes | None = None
    for index, part in enumerate(parts):
        one = pack(part, format_name, rows // count, columns).data
        packed = native.aligned(count * one.nbytes) if packed is None else packed
        packed[index * one.nbytes : (index + 1) * one.nbytes] = one
    if packed is None:
        raise InvariantError(f"a stack of no {format_name} matrices")
    return PackedWeight(packed, format_name, rows, columns)


def file_bytes(format_name: str, rows: int, columns: int) -> int:
    """Bytes in file order."""
    group, nbytes = BLOCKS[format_name]
    return rows * (columns // group) * nbytes

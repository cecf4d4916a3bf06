"""fp8: eight-bit floats under an f32 scale for the tensor, each row, or each block of 128 x 128 (F17).

value = float8(code) * scale. Bytes: each row its codes, then its scale; or all codes, then the scales. Edge blocks may
be smaller. Rounds to nearest even and saturates; refuses NaN and infinity when packing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ridgeline.kit.errors import UserError
from ridgeline.ops.protocols import Floats

from .format import Bytes, choice
from .half import check_finite

KINDS = {"e4m3": (4, 448.0), "e5m2": (5, 57_344.0)}  # exponent bits, largest finite value
UNITS = ("tensor", "row", "block")
EDGE = 128  # of a block
CHUNK_VALUES = 1 << 22


@functools.cache
def table(kind: str) -> Floats:
    """[256] f32: what each code means."""
    exponent_bits = KINDS[kind][0]
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(128)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    fraction = mantissa / (1 << mantissa_bits)
    values = np.where(exponent > 0, 1 + fraction, fraction) * 2.0 ** (np.maximum(exponent, 1) - bias)
    if kind == "e4m3":  # no infinity: one NaN a sign
        values[127] = np.nan
    else:
        values[124], values[125:] = np.inf, np.nan
    return np.concatenate([values, -values]).astype(np.float32)


def encode(values: Floats, kind: str) -> Bytes:
    """f32 -> codes, to nearest even, saturating."""
    finite = table(kind)[:128]
    finite = finite[np.isfinite(finite)].astype(np.float64)
    middles = (finite[1:] + finite[:-1]) / 2
    size = np.abs(values).astype(np.float64)
    codes = np.searchsorted(middles, size)  # middles below size; a tie is not below
    tie = (codes < len(middles)) & (middles[np.minimum(codes, len(middles) - 1)] == size)
    codes += tie & (codes % 2 == 1)
    return (codes.astype(np.uint8) | np.signbit(values).astype(np.uint8) << np.uint8(7)).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Fp8Format:
    kind: str = "e4m3"
    unit: str = "row"

    @property
    def name(self) -> str:
        options = [f"kind={self.kind}"] if self.kind != "e4m3" else []
        options += [f"scale={self.unit}"] if self.unit != "row" else []
        return f"fp8:{','.join(options)}" if options else "fp8"

    def configured(self, options: Mapping[str, str]) -> Fp8Format:
        """kind=e4m3|e5m2, scale=tensor|row|block. UserError for anything else."""
        known = {"kind": ("kind", {name: name for name in KINDS}), "scale": ("unit", {name: name for name in UNITS})}
        wrong = sorted(set(options) - set(known))
        if wrong:
            raise UserError(f"fp8 has no option {', '.join(wrong)}. Known: {', '.join(known)}.")
        return replace(self, **{known[name][0]: choice(text, known[name][1]) for name, text in options.items()})

    @property
    def group(self) -> int:
        """Any number of columns can be stored."""
        return 1

    @property
    def by_rows(self) -> bool:
        return self.unit == "row"

    @property
    def native(self) -> int:
        """RlFormat with the unit of its scales (cpp/kernels.h)."""
        return (12 + list(KINDS).index(self.kind)) | UNITS.index(self.unit) << 8

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Of the scales of [rows, columns]."""
        return {"tensor": (1, 1), "row": (rows, 1), "block": (-(-rows // EDGE), -(-columns // EDGE))}[self.unit]

    def nbytes(self, rows: int, columns: int) -> int:
        down, across = self.scale_shape(rows, columns)
        return rows * columns + 4 * down * across

    def pack(self, values: Floats) -> Bytes:
        """[rows, columns] f32 -> bytes; the largest of each unit becomes the largest finite code."""
        values = np.ascontiguousarray(values, np.float32)
        check_finite(values, "fp8")
        rows, columns = values.shape
        size = np.abs(values)
        if self.unit == "tensor":
            peak = size.max(keepdims=True)
        else:
            peak = (
                np.maximum.reduceat(size, np.arange(0, columns, EDGE), 1)
                if self.unit == "block"
                else size.max(1, keepdims=True)
            )
            if self.unit == "block":
                peak = np.maximum.reduceat(peak, np.arange(0, rows, EDGE), 0)
        scales = np.where(peak > 0, peak / np.float32(KINDS[self.kind][1]), np.float32(1)).astype(np.float32)
        scales = np.maximum(scales, np.finfo(np.float32).tiny)  # a scale must have a reciprocal
        codes = np.empty((rows, columns), np.uint8)
        step = max(1, CHUNK_VALUES // columns)
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            codes[start:stop] = encode(values[start:stop] / self._spread(scales, start, stop, columns), self.kind)
        return self.join(codes, scales)

    def unpack(self, data: Bytes, rows: int, columns: int) -> Floats:
        """Bytes -> [rows, columns] f32: exactly what the bits mean."""
        if data.size != self.nbytes(rows, columns):
            raise UserError(f"{self.name} [{rows}, {columns}] is {self.nbytes(rows, columns)} bytes, not {data.size}.")
        if self.by_rows:
            table_of = data.reshape(rows, columns + 4)
            codes, scales = table_of[:, :columns], np.ascontiguousarray(table_of[:, columns:]).view(np.float32)
        else:
            codes = data[: rows * columns].reshape(rows, columns)
            scales = np.ascontiguousarray(data[rows * columns :]).view(np.float32)
            scales = scales.reshape(self.scale_shape(rows, columns))
        values = np.empty((rows, columns), np.float32)
        step = max(1, CHUNK_VALUES // columns)
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            values[start:stop] = table(self.kind)[codes[start:stop]] * self._spread(scales, start, stop, columns)
        return values

    def join(self, codes: Bytes, scales: Floats) -> Bytes:
        """codes [rows, columns], scales as scale_shape() says -> the bytes."""
        raw = np.ascontiguousarray(scales, np.float32).view(np.uint8)
        if self.by_rows:
            return np.concatenate([codes, raw], 1).reshape(-1)
        return np.concatenate([codes.reshape(-1), raw.reshape(-1)])

    def _spread(self, scales: Floats, start: int, stop: int, columns: int) -> Floats:
        """Scales of rows [start, stop), broadcasting to [stop - start, columns]."""
        if self.unit == "tensor":
            return scales
        if self.unit == "row":
            return scales[start:stop]
        down = scales[np.arange(start, stop) // EDGE]
        return np.repeat(down, EDGE, 1)[:, :columns]


FORMAT = Fp8Format()

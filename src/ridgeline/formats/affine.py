"""AffineFormat: integer codes, a scale for each group of columns of a row and, if wanted, an integer zero (F2, F4).

value = scale * (code - zero). Owns the bytes: of each row the codes, the scales, the zeros. The last
group of a row may be shorter. Refuses NaN, infinity and scales beyond the 16 bits they are kept in.
"""
# size: one method a thing that Format asks, for codes, scales and zeros alike

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import UserError
from ridgeline.ops.protocols import Floats

from . import bf16
from .format import Bytes, choice, number
from .half import check_finite, reciprocal

SCALES = {"f16": 2, "bf16": 2, "f32": 4}  # bytes; their order is that of the native number
CHUNK_VALUES = 1 << 22
NATIVE_GROUP = 32  # RL_GROUP: native bodies read whole groups of activations


@dataclass(frozen=True, slots=True)
class AffineFormat:
    """bits: 4 or 8. span: columns that share a scale, 0 for the whole row. A code is stored unsigned, so that without
    `zero` its zero is 2^(bits-1); eight bits without `zero` are stored signed, as everyone does.
    """

    stem: str
    bits: int
    usual_span: int
    span: int
    zero: bool = False
    scale: str = "f16"

    # -- options

    @property
    def name(self) -> str:
        """The stem and the options that are not the stem's own: what FORMATS.get() takes."""
        options = [f"group={self.span}"] if self.span != self.usual_span else []
        options += ["zero=1"] if self.zero else []
        options += [f"scale={self.scale}"] if self.scale != "f16" else []
        return f"{self.stem}:{','.join(options)}" if options else self.stem

    def configured(self, options: Mapping[str, str]) -> AffineFormat:
        """group=COLUMNS (0: the row), zero=0|1, scale=f16|bf16|f32. UserError for anything else."""
        wrong = sorted(set(options) - {"group", "zero", "scale"})
        if wrong:
            raise UserError(f"{self.stem} has no option {', '.join(wrong)}. Known: group, zero, scale.")
        return replace(
            self,
            span=number(options.get("group", str(self.span)), 0, 1 << 16),
            zero=choice(options.get("zero", str(int(self.zero))), {"0": False, "1": True}),
            scale=choice(options.get("scale", self.scale), {name: name for name in SCALES}),
        )

    # -- sizes

    @property
    def group(self) -> int:
        """Any number of columns can be stored."""
        return 1

    @property
    def by_rows(self) -> bool:
        return True

    @property
    def native(self) -> int:
        """RlFormat with its options (cpp/kernels.h), -1 for groups that native bodies cannot read."""
        if self.span % NATIVE_GROUP:
            return -1
        kind = {(8, False): 8, (8, True): 9, (4, False): 10, (4, True): 11}[self.bits, self.zero]
        return kind | list(SCALES).index(self.scale) << 8 | (self.span // NATIVE_GROUP) << 12

    @property
    def offset(self) -> int:
        """The unsigned code that means 0 without `zero`."""
        return 1 << (self.bits - 1)

    def groups(self, columns: int) -> int:
        return -(-columns // self.span) if self.span else 1

    def _row_bytes(self, columns: int) -> tuple[int, int, int]:
        """Of codes, scales and zeros."""
        groups = self.groups(columns)
        return (
            -(-columns * self.bits // 8), groups * SCALES[self.scale],
            -(-groups * self.bits // 8) if self.zero else 0,
        )  # fmt: skip

    def nbytes(self, rows: int, columns: int) -> int:
        return rows * sum(self._row_bytes(columns))

    # -- numbers

    def pack(self, values: Floats) -> Bytes:
        """[rows, columns] f32 -> bytes, rounded to nearest. UserError for what a scale cannot hold."""
        values = np.ascontiguousarray(values, np.float32)
        check_finite(values, self.stem)
        rows, columns = values.shape
        codes = np.empty((rows, columns), np.uint8)
        groups = self.groups(columns)
        scales, zeros = np.empty((rows, groups), np.float32), np.zeros((rows, groups), np.uint8)
        step = max(1, CHUNK_VALUES // columns)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            codes[part], scales[part], zeros[part] = self._rounded(values[part])
        return self.join(codes, self.pack_scales(scales), zeros if self.zero else None)

    def _rounded(self, values: Floats) -> tuple[Bytes, Floats, Bytes]:
        most = (1 << self.bits) - 1
        starts = np.arange(0, values.shape[1], self.span or values.shape[1])
        high, low = np.maximum.reduceat(values, starts, 1), np.minimum.reduceat(values, starts, 1)
        if self.zero:  # the range holds 0, so that 0 is exact
            high, low = np.maximum(high, 0), np.minimum(low, 0)
            scales = self._stored((high - low) / np.float32(most))
            zeros = np.rint(-low * reciprocal(scales)).clip(0, most).astype(np.float32)
        else:
            scales = self._stored(np.maximum(high, -low) / np.float32(self.offset - 1))
            zeros = np.full_like(scales, self.offset)
        codes = np.rint(values * self._spread(reciprocal(scales), values.shape[1]))
        codes += self._spread(zeros, values.shape[1])
        least = 0 if self.zero else 1  # symmetric: as many codes below 0 as above
        return codes.clip(least, most).astype(np.uint8), scales, zeros.astype(np.uint8)

    def unpack(self, data: Bytes, rows: int, columns: int) -> Floats:
        """Bytes -> [rows, columns] f32: exactly what the bits mean."""
        codes, scales, zeros = self.split(data, rows, columns)
        values = np.empty((rows, columns), np.float32)
        step = max(1, CHUNK_VALUES // columns)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            values[part] = codes[part]
            values[part] -= self._spread(zeros[part].astype(np.float32), columns)
            values[part] *= self._spread(scales[part], columns)
        return values

    # -- bytes

    def join(self, codes: Bytes, scales: Bytes, zeros: Bytes | None) -> Bytes:
        """codes [rows, columns] unsigned, scales [rows, groups * bytes] u8, zeros [rows, groups] -> the bytes."""
        if self.bits == 4:
            packed = _join_pairs(codes)
        else:
            packed = codes if self.zero else codes ^ np.uint8(0x80)
        parts = [packed, np.ascontiguousarray(scales).reshape(len(codes), -1)]
        if self.zero and zeros is not None:
            parts.append(_join_pairs(zeros) if self.bits == 4 else zeros)
        return np.concatenate(parts, 1).reshape(-1)

    def split(self, data: Bytes, rows: int, columns: int) -> tuple[Bytes, Floats, Bytes]:
        """(codes [rows, columns] unsigned, scales [rows, groups] f32, zeros [rows, groups])."""
        if data.size != self.nbytes(rows, columns):
            raise UserError(f"{self.name} [{rows}, {columns}] is {self.nbytes(rows, columns)} bytes, not {data.size}.")
        codes, scales, zeros = np.split(data.reshape(rows, -1), np.cumsum(self._row_bytes(columns))[:2], axis=1)
        groups = self.groups(columns)
        if self.bits == 4:
            codes = _split_pairs(codes)[:, :columns]
        elif not self.zero:
            codes = codes ^ np.uint8(0x80)
        if not self.zero:
            zeros = np.full((rows, groups), self.offset, np.uint8)
        elif self.bits == 4:
            zeros = _split_pairs(zeros)[:, :groups]
        return codes, self._read_scales(scales).reshape(rows, groups), zeros

    def pack_scales(self, scales: Floats) -> Bytes:
        """[rows, groups] f32 -> [rows, groups * bytes] u8. UserError when the kind of scale cannot hold one."""
        if self.scale == "f32":
            return np.ascontiguousarray(scales).view(np.uint8)
        if self.scale == "bf16":
            return bf16.pack_blocks(scales)
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)
        if not np.isfinite(halves).all():
            raise UserError(
                f"{self.name} keeps scales as 16-bit floats (at most 65,504); these need larger ones. Try scale=f32."
            )
        return halves.view(np.uint8)

    def _read_scales(self, data: Bytes) -> Floats:
        data = np.ascontiguousarray(data)
        if self.scale == "bf16":
            return bf16.unpack_blocks(data)
        return data.view(np.float16 if self.scale == "f16" else np.float32).astype(np.float32)

    def _stored(self, scales: npt.NDArray[np.floating]) -> Floats:
        """What of the scales is left after storing them."""
        packed = self.pack_scales(scales.astype(np.float32))
        return self._read_scales(packed).reshape(scales.shape)

    def _spread(self, values: Floats, columns: int) -> Floats:
        """[rows, groups] -> something that broadcasts to [rows, columns]."""
        return np.repeat(values, self.span, 1)[:, :columns] if self.span else values


def _join_pairs(codes: Bytes) -> Bytes:
    """[rows, n] of 0..15 -> [rows, ceil(n / 2)]: the even column in the low nibble."""
    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    joined: Bytes = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return joined


def _split_pairs(packed: Bytes) -> Bytes:
    """[rows, n] -> [rows, 2 n]."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)

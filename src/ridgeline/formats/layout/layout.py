"""The table of layouts: what `quantization_config` of a Hugging Face directory says its integer tensors mean.

A layout gives every quantised matrix as a StoredWeight in a format of ours that holds the file's own codes, scales and
zeros in another order; they are put in order when the bytes are asked for. It reads values only where the meaning
hangs on them (zeros, index of groups). Refuses what no format here can mean, and tensors of another shape or type.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.formats.affine import AffineFormat
from ridgeline.formats.format import FORMATS, Bytes
from ridgeline.formats.int4 import FORMAT as INT4
from ridgeline.formats.int8 import FORMAT as INT8
from ridgeline.formats.safetensors_file import ELEMENT_FORMATS, RawTensor
from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import UserError
from ridgeline.kit.fields import Fields
from ridgeline.kit.registry import Registry
from ridgeline.ops.protocols import Floats

Cells = npt.NDArray[Any]
ELEMENTS: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("<i1"), "I32": np.dtype("<u4"), "I64": np.dtype("<i8"), "F8_E4M3": np.dtype("u1"),
    "F16": np.dtype("<u2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<u4"),
}  # fmt: skip
SCALE_KINDS = tuple(ELEMENT_FORMATS)
AFFINE = {4: INT4, 8: INT8}
MOST_GROUP = 1 << 16
WORD = 32  # bits


@dataclass(frozen=True, slots=True)
class Contents:
    """tensors: by the names an unquantised file would have. dropped: names that hold nothing the model needs.

    notes: sentences about how the file was read, for whoever runs it.
    """

    tensors: Mapping[str, StoredWeight]
    dropped: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


Layout = Callable[[Fields, Mapping[str, RawTensor]], Contents]
LAYOUTS: Registry[Layout] = Registry(
    "layout",
    __package__,
    {
        "gptq": ".gptq:read",
        "awq": ".awq:read",
        "compressed-tensors": ".compressed_tensors:read",
    },
)


def read_layout(config: Mapping[str, Any], tensors: Mapping[str, RawTensor], source: str) -> Contents:
    """Tensors of a directory as `quantization_config` of its config.json (`source`) describes them."""
    fields = Fields(config, source).table("quantization_config")
    if fields is None:
        return Contents({name: raw.weight() for name, raw in tensors.items()})
    method = fields.text("quant_method")
    if method not in LAYOUTS:
        raise UserError(
            f"{source}: quantization_config has quant_method {method!r}; read here: {', '.join(LAYOUTS)}. "
            "Give unquantised safetensors or a GGUF file of this model."
        )
    return LAYOUTS.get(method)(fields, tensors)


# -- taking a file apart


@dataclass(frozen=True, slots=True)
class Module:
    """A quantised linear: its tensors by their last name, which no two layouts share."""

    name: str
    parts: Mapping[str, RawTensor]
    source: str

    def cells(self, part: str, kinds: Collection[str], *shapes: tuple[int, ...]) -> Cells:
        """The tensor's elements, their bits unsigned; of one of `kinds` and `shapes` (none given: of two dimensions).

        UserError says what was there instead.
        """
        raw = self.parts.get(part)
        if raw is None:
            raise UserError(f"{self.source}: {self.name} lacks its {part}. The file is incomplete; fetch it again.")
        fits = raw.shape in shapes if shapes else len(raw.shape) == 2
        if raw.kind not in kinds or not fits:
            wanted = " or ".join(str(list(shape)) for shape in shapes) if shapes else "of two dimensions"
            raise UserError(
                f"{self.source}: {raw.name} is {raw.kind} {list(raw.shape)}; its quantization_config asks for "
                f"{' or '.join(kinds)} {wanted}. The file is damaged or its configuration is wrong."
            )
        cells: Cells = raw.data.view(ELEMENTS[raw.kind]).reshape(raw.shape)
        return cells

    def kind(self, part: str) -> str:
        return self.parts[part].kind if part in self.parts else ""

    def refuse(self, what: str) -> UserError:
        return UserError(f"{self.source}: {self.name} {what}")


def modules_of(
    tensors: Mapping[str, RawTensor], parts: Collection[str], source: str
) -> tuple[list[Module], dict[str, RawTensor]]:
    """(modules that have any of `parts`, every tensor that belongs to none)."""
    found: dict[str, dict[str, RawTensor]] = {}
    rest = {}
    for name, raw in tensors.items():
        stem, dot, part = name.rpartition(".")
        if dot and part in parts:
            found.setdefault(stem, {})[part] = raw
        else:
            rest[name] = raw
    return [Module(name, owned, source) for name, owned in found.items()], rest


def joined(weights: Mapping[str, StoredWeight], rest: Mapping[str, RawTensor], source: str) -> dict[str, StoredWeight]:
    """Quantised and plain tensors together. UserError when a matrix is there in both ways."""
    if twice := sorted(set(weights) & set(rest)):
        raise UserError(
            f"{source} stands beside a file with {twice[0]} both quantised and plain. Fetch the model again."
        )
    return {name: raw.weight() for name, raw in rest.items()} | dict(weights)


def empty_biases(modules: Collection[Module], rest: Mapping[str, RawTensor]) -> frozenset[str]:
    """Biases of quantised linears that are all zero: some writers store one whether or not the model has it."""
    names = (f"{module.name}.bias" for module in modules)
    return frozenset(name for name in names if name in rest and not rest[name].data.any())


def group_size(fields: Fields, *keys: str) -> int:
    """Columns that share a scale, 0 for the whole row (written -1 or, in compressed-tensors, null)."""
    key = next((key for key in keys if fields.values.get(key) is not None), keys[0])
    size = fields.integer(key, MOST_GROUP, -1, least=-1)
    if size == 0:
        raise UserError(f"{fields.source}: {key} is 0; it must be -1 or at least 1.")
    return max(size, 0)


# -- bits


def unpack_words(words: Cells, bits: int) -> Bytes:
    """[rows, n] u32 -> [rows, n * 32 / bits] codes, those in the lowest bits first. bits: 4 or 8."""
    data = np.ascontiguousarray(words).view(np.uint8)
    return data if bits == 8 else np.stack([data & 15, data >> 4], -1).reshape(len(data), -1)


def affine(bits: int, span: int, zero: bool, scale_kind: str) -> AffineFormat:
    """The format of ours with these options."""
    return replace(AFFINE[bits], span=span, zero=zero, scale=ELEMENT_FORMATS[scale_kind])


def finite_scales(name: str, scales: Cells, kind: str) -> Floats:
    """[rows, groups] f32 of the scales' bits. UserError for NaN and infinity."""
    flat = np.ascontiguousarray(scales)
    values = FORMATS.get(ELEMENT_FORMATS[kind]).unpack(flat.view(np.uint8).reshape(-1), *flat.shape)
    if not np.isfinite(values).all():
        raise UserError(f"{name} has a scale that is NaN or infinite. The file is damaged; fetch it again.")
    return values


def join(format: AffineFormat, name: str, codes: Bytes, scales: Cells, zeros: Bytes | None, kind: str) -> Bytes:
    """codes [rows, columns], scales [rows, groups] as bits of `kind`, zeros [rows, groups] -> the format's bytes."""
    finite_scales(name, scales, kind)
    return format.join(codes, np.ascontiguousarray(scales).view(np.uint8), zeros)

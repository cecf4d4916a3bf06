"""compressed-tensors: integers packed along the inputs with an offset, or int8 and fp8; scales by row or group.

Which scheme a matrix has follows from its tensors: `targets` and `ignore` (patterns of others) are never run. Weights
alone are taken: activations are rounded as our own bodies do it, which the notes say. Refuses sparsity, block and
tensor-group scales, quantised keys and values, and files whose weights were not compressed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ridgeline.formats.affine import AffineFormat
from ridgeline.formats.format import Bytes
from ridgeline.formats.fp8 import Fp8Format
from ridgeline.formats.safetensors_file import RawTensor
from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import UserError
from ridgeline.kit.fields import Fields

from .layout import (
    SCALE_KINDS,
    WORD,
    Cells,
    Contents,
    Module,
    affine,
    finite_scales,
    group_size,
    join,
    joined,
    modules_of,
    unpack_words,
)

FORMATS_READ = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
STRATEGIES = ("tensor", "channel", "group")
PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
OF_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
MOST_GROUPS = 256
NAN_CODE = 0x7F  # of e4m3, beside its sign


@dataclass(frozen=True, slots=True)
class Scheme:
    """What config_groups says of some weights. span: columns a scale, 0 for the row; whole: one scale a matrix."""

    is_float: bool
    bits: int
    span: int
    whole: bool
    zero: bool


def read(fields: Fields, tensors: Mapping[str, RawTensor]) -> Contents:
    """UserError for what is said above, and for matrices that no group, or groups of two meanings, could have made."""
    schemes, notes = _schemes(fields)
    own, rest = modules_of(tensors, (*PARTS, *OF_ACTIVATIONS), fields.source)
    weights: dict[str, StoredWeight] = {}
    dropped: set[str] = set()
    for module in own:
        dropped |= {raw.name for part, raw in module.parts.items() if part in OF_ACTIVATIONS}
        if set(module.parts) - set(OF_ACTIVATIONS) <= {"weight"}:
            rest |= {raw.name: raw for part, raw in module.parts.items() if part == "weight"}
            continue
        weight = _weight(module, schemes)
        weights[weight.name] = weight
    return Contents(joined(weights, rest, fields.source), frozenset(dropped), notes)


# -- the configuration


def _schemes(fields: Fields) -> tuple[tuple[Scheme, ...], tuple[str, ...]]:
    _check_whole(fields)
    groups = fields.table("config_groups")
    if groups is None or not 1 <= len(groups.values) <= MOST_GROUPS:
        raise UserError(f"{fields.source}: config_groups must name 1 to {MOST_GROUPS} groups. Fetch the model again.")
    schemes: list[Scheme] = []
    rounds = False
    for name in groups.values:
        group = groups.table(name)
        if group is None:
            continue
        _check_format(group)
        weights = group.table("weights")
        if weights is not None:
            schemes.append(_scheme(weights))
        rounds |= group.is_set("input_activations") or group.is_set("output_activations")
    note = (
        "its configuration rounds activations as well: here weights are used as they are stored, and activations are "
        "rounded only as the engine's own bodies for such weights do it."
    )
    return tuple(dict.fromkeys(schemes)), (note,) if rounds else ()


def _check_whole(fields: Fields) -> None:
    _check_format(fields)
    sparsity = fields.table("sparsity_config")
    if sparsity is not None and sparsity.is_set("format") and sparsity.text("format") != "dense":
        raise UserError(
            f"{fields.source}: sparsity_config stores weights as {sparsity.text('format')!r}; sparse weights are not "
            "read here. Take a dense copy of this model."
        )
    if fields.is_set("kv_cache_scheme"):
        raise UserError(
            f"{fields.source}: kv_cache_scheme is set; scales of keys and values are not read here. Take a copy "
            "without, and choose how they are kept by --kv."
        )
    status = fields.text("quantization_status", "compressed")
    if status != "compressed":
        raise UserError(
            f"{fields.source}: quantization_status is {status!r}; only compressed weights are read here. "
            "Take a copy saved compressed."
        )


def _check_format(fields: Fields) -> None:
    format = fields.text("format", FORMATS_READ[0])
    if format not in FORMATS_READ:
        raise UserError(
            f"{fields.source}: format {format!r}; read here: {', '.join(FORMATS_READ)}. "
            "Give a copy in one of these, unquantised safetensors or a GGUF file."
        )


def _scheme(fields: Fields) -> Scheme:
    is_float, bits = fields.text("type", "int").lower() == "float", fields.integer("num_bits", 64, 8)
    strategy = fields.text("strategy", "group" if group_size(fields, "group_size") else "tensor")
    if strategy not in STRATEGIES:
        raise UserError(
            f"{fields.source}: strategy {strategy!r}; scales read here: {', '.join(STRATEGIES)}. Take another copy."
        )
    span = group_size(fields, "group_size") if strategy == "group" else 0
    if (strategy == "group" and not span) or bits not in ((8,) if is_float else (4, 8)) or (is_float and span):
        raise UserError(
            f"{fields.source}: {'floats' if is_float else 'integers'} of {bits} bits by {strategy}; read here: "
            "integers of 4 or 8 bits by row or group, floats of 8 bits by row or tensor. Take another copy."
        )
    return Scheme(is_float, bits, span, strategy == "tensor", not fields.flag("symmetric", True))


# -- one matrix


def _weight(module: Module, schemes: tuple[Scheme, ...]) -> StoredWeight:
    """With the codes, scales and zeros of the one scheme that fits its tensors."""
    codes, rows, columns = _codes(module)
    scheme = _fitting(module, schemes, codes, (rows, columns))
    kind, name = module.kind("weight_scale"), f"{module.name}.weight"
    groups = -(-columns // scheme.span) if scheme.span else 1
    scales = module.cells("weight_scale", SCALE_KINDS, module.parts["weight_scale"].shape)
    if "weight_g_idx" in module.parts:
        _check_index(module, columns, scheme.span or columns)
    if scheme.is_float:
        if "weight_zero_point" in module.parts and module.parts["weight_zero_point"].data.any():
            raise module.refuse("is of floats with a zero that is not 0. The file is damaged.")
        floating = Fp8Format("e4m3", "tensor" if scheme.whole else "row")
        make = functools.partial(_float_bytes, floating, name, codes, scales.reshape(-1, 1), kind)
        return StoredWeight(name, rows, columns, floating, make=make)
    format = affine(scheme.bits, scheme.span, scheme.zero, kind)
    zeros = _zeros(module, scheme, rows, groups) if scheme.zero else None
    spread = np.broadcast_to(scales.reshape(1, 1) if scheme.whole else scales.reshape(rows, groups), (rows, groups))
    make = functools.partial(_integer_bytes, format, name, (codes, columns), (spread, kind), zeros)
    return StoredWeight(name, rows, columns, format, make=make)


def _codes(module: Module) -> tuple[Cells, int, int]:
    """(elements, or words of packed ones; rows, columns)."""
    if "weight_packed" not in module.parts:
        codes = module.cells("weight", ("I8", "F8_E4M3"))
        return codes, codes.shape[0], codes.shape[1]
    packed = module.cells("weight_packed", ("I32",))
    rows, columns = (int(size) for size in module.cells("weight_shape", ("I64",), (2,)))
    if rows != packed.shape[0] or not 0 < columns <= packed.shape[1] * WORD:
        raise module.refuse(f"has a weight_shape of {[rows, columns]}, not that of its codes. The file is damaged.")
    return packed, rows, columns


def _fitting(module: Module, schemes: tuple[Scheme, ...], codes: Cells, shape: tuple[int, int]) -> Scheme:
    """The scheme that these tensors follow, its span 0 when a group is a row, its bits those that are stored."""
    is_packed, is_float = "weight_packed" in module.parts, module.kind("weight") == "F8_E4M3"
    scale, has_zero = module.parts.get("weight_scale"), "weight_zero_point" in module.parts
    found: dict[tuple[int, int], Scheme] = {}
    for scheme in schemes:
        span = 0 if scheme.span >= shape[1] else scheme.span
        width = -(-shape[1] * scheme.bits // WORD) if is_packed else shape[1]
        fits = scheme.is_float == is_float and (is_float or scheme.zero == has_zero) and codes.shape[1] == width
        if fits and scale is not None and scale.shape in _scale_shapes(scheme, *shape):
            bits = scheme.bits if is_packed else 8
            found.setdefault((bits, span), replace(scheme, span=span, bits=bits))
    if len(found) != 1:
        having = ", ".join(f"{part} {raw.kind} {list(raw.shape)}" for part, raw in module.parts.items())
        raise module.refuse(
            f"({having}) fits {'several groups' if found else 'no group'} of config_groups. "
            "The file is damaged or its configuration is wrong."
        )
    return found.popitem()[1]


def _scale_shapes(scheme: Scheme, rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
    if scheme.whole:
        return ((), (1,), (1, 1))
    groups = -(-columns // scheme.span) if scheme.span else 1
    return ((rows, groups), (rows,)) if groups == 1 else ((rows, groups),)


def _check_index(module: Module, columns: int, span: int) -> None:
    """Columns in their order, or an index that was never filled."""
    index = module.cells("weight_g_idx", ("I32",), (columns,)).view(np.int32)
    if not (np.array_equal(index, np.arange(columns) // span) or (index == -1).all()):
        raise module.refuse(
            "has its groups in activation order (actorder, weight_g_idx), which no format here stores. "
            "Take a copy made with actorder weight or none."
        )


def _zeros(module: Module, scheme: Scheme, rows: int, groups: int) -> Bytes:
    """[rows, groups] as unsigned codes; packed along the rows beside packed codes."""
    if "weight_packed" in module.parts:
        words = module.cells("weight_zero_point", ("I32",), (-(-rows * scheme.bits // WORD), groups))
        return np.ascontiguousarray(unpack_words(words.T, scheme.bits)[:, :rows].T)
    shapes = _scale_shapes(scheme, rows, groups * (scheme.span or 1))
    signed = module.cells("weight_zero_point", ("I8",), *shapes)
    signed = signed.reshape(1, 1) if scheme.whole else signed.reshape(rows, groups)
    return np.broadcast_to(signed.view(np.uint8) ^ np.uint8(0x80), (rows, groups))


def _integer_bytes(
    format: AffineFormat, name: str, stored: tuple[Cells, int], scales: tuple[Cells, str], zeros: Bytes | None
) -> Bytes:
    codes, columns = stored
    if codes.dtype == np.int8:
        return join(format, name, codes.view(np.uint8) ^ np.uint8(0x80), scales[0], zeros, scales[1])
    unpacked = np.ascontiguousarray(unpack_words(codes, format.bits)[:, :columns])
    return join(format, name, unpacked, scales[0], zeros, scales[1])


def _float_bytes(format: Fp8Format, name: str, codes: Cells, scales: Cells, kind: str) -> Bytes:
    if ((codes & NAN_CODE) == NAN_CODE).any():
        raise UserError(f"{name} holds NaN among its fp8 codes. The file is damaged; fetch it again.")
    return format.join(codes, finite_scales(name, scales, kind))

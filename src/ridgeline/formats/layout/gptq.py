"""gptq: codes packed along the inputs, zeros along the outputs, lowest bits first (F8; AutoGPTQ, GPTQModel).

Version 1 stores each zero less 1, version 2 as it is; a symmetric file shows which, whatever it says of itself.
Reads 4 and 8 bits. Refuses groups in activation order: their columns lie scattered, and inputs are not permuted here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ridgeline.formats.affine import AffineFormat
from ridgeline.formats.format import Bytes
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
    empty_biases,
    group_size,
    join,
    joined,
    modules_of,
    unpack_words,
)

PARTS = ("qweight", "qzeros", "scales", "g_idx")
STORED_LESS = {"gptq": 1, "gptq_v2": 0}  # by how much a stored zero is less than the zero


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix [rows, columns]: packed [columns / n, rows], zeros [groups, rows / n] u32, scales [groups, rows]."""

    name: str
    packed: Cells
    zeros: Cells
    scales: Cells
    scale_kind: str

    @property
    def rows(self) -> int:
        return int(self.packed.shape[1])

    def columns(self, bits: int) -> int:
        return int(self.packed.shape[0]) * WORD // bits


def read(fields: Fields, tensors: Mapping[str, RawTensor]) -> Contents:
    """UserError for what is said above, and for other ways to store codes (marlin, planes of 3 bits, ...)."""
    bits, span, declared = _settings(fields)
    modules, rest = modules_of(tensors, PARTS, fields.source)
    linears = [_linear(module, bits, span) for module in modules]
    less, is_symmetric, notes = _zeros(fields, linears, bits, declared)
    weights = {}
    for linear in linears:
        format = affine(bits, span, not is_symmetric, linear.scale_kind)
        name = f"{linear.name}.weight"
        make = functools.partial(_bytes, linear, format, less)
        weights[name] = StoredWeight(name, linear.rows, linear.columns(bits), format, make=make)
    return Contents(joined(weights, rest, fields.source), empty_biases(modules, rest), notes)


def _settings(fields: Fields) -> tuple[int, int, str]:
    bits = fields.integer("bits", 8)
    if bits not in (4, 8):
        raise UserError(f"{fields.source}: gptq of {bits} bits; read here: 4 and 8. Take a copy with one of these.")
    declared = fields.text("checkpoint_format", "gptq")
    if declared not in STORED_LESS or fields.is_set("is_marlin_format"):
        declared = declared if declared not in STORED_LESS else "marlin"
        raise UserError(
            f"{fields.source}: checkpoint_format {declared!r}; read here: {', '.join(STORED_LESS)}. "
            "Take a copy in one of these."
        )
    if fields.text("pack_dtype", "int32") != "int32":
        raise UserError(f"{fields.source}: pack_dtype {fields.text('pack_dtype')!r}; read here: int32.")
    dynamic = fields.table("dynamic")
    if dynamic is not None and any(not key.startswith("-:") for key in dynamic.values):
        raise UserError(f"{fields.source}: dynamic gives layers bits of their own, which is not read here yet.")
    return bits, group_size(fields, "group_size"), declared


def _linear(module: Module, bits: int, span: int) -> Linear:
    packed = module.cells("qweight", ("I32",))
    rows, columns = packed.shape[1], packed.shape[0] * WORD // bits
    groups = -(-columns // span) if span else 1
    if rows * bits % WORD:
        raise module.refuse(f"has {rows} outputs, which do not fill the words of its zeros. The file is damaged.")
    zeros = module.cells("qzeros", ("I32",), (groups, rows * bits // WORD))
    scales = module.cells("scales", SCALE_KINDS, (groups, rows))
    if "g_idx" in module.parts:
        index = module.cells("g_idx", ("I32",), (columns,))
        if not np.array_equal(index, np.arange(columns) // (span or columns)):
            raise module.refuse(
                "has its groups in activation order (desc_act, g_idx), which no format here stores. "
                "Take a copy made with desc_act false or static_groups true, or a GGUF file."
            )
    return Linear(module.name, packed, zeros, scales, module.kind("scales"))


def _zeros(fields: Fields, linears: Sequence[Linear], bits: int, declared: str) -> tuple[int, bool, tuple[str, ...]]:
    """(what stored zeros lack, whether all zeros are the middle code, notes). Values win over words."""
    middle = 1 << (bits - 1)
    less = STORED_LESS[declared]
    if fields.flag("sym", True):
        for name, lacks in STORED_LESS.items():
            word = np.uint32((middle - lacks) * (((1 << WORD) - 1) // ((1 << bits) - 1)))
            if linears and all((linear.zeros == word).all() for linear in linears):
                if lacks == less:
                    return less, True, ()
                said = (
                    f"its zeros are {middle - lacks} throughout, as symmetric files of {name} have them, although it "
                    f"says checkpoint_format {declared}: read as {name}."
                )
                return lacks, True, (said,)
    return less, False, ()


def _bytes(linear: Linear, format: AffineFormat, less: int) -> Bytes:
    bits = format.bits
    codes = unpack_words(linear.packed.T, bits)
    zeros = None
    if format.zero:
        zeros = unpack_words(linear.zeros, bits).T
        if less and (zeros == (1 << bits) - 1).any():
            raise UserError(
                f"{linear.name} has a zero of {(1 << bits) - 1} stored less 1 (checkpoint_format gptq), which writers "
                "and readers do not agree on. Save it as gptq_v2."
            )
        zeros = zeros + np.uint8(less)
    return join(format, linear.name, codes, linear.scales.T, zeros, linear.scale_kind)

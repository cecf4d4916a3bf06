"""awq: codes and zeros packed along the outputs, eight to a word, in the order 0 2 4 6 1 3 5 7 (F9; AutoAWQ "gemm").

Zeros are stored as they are. Reads 4 bits. Refuses the other versions (gemv, gemv_fast, marlin, ...), which lie
otherwise, and llm-awq's own files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

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

PARTS = ("qweight", "qzeros", "scales")
BITS = 4
ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # nibble i of a word, lowest first, is output ORDER[i] of its eight
PLACE = np.argsort(ORDER)
MIDDLE = np.uint32(0x88888888)


def read(fields: Fields, tensors: Mapping[str, RawTensor]) -> Contents:
    """UserError for what is said above."""
    key = "bits" if fields.values.get("bits") is not None else "w_bit"
    if fields.integer(key, 64) != BITS:
        raise UserError(f"{fields.source}: awq of {fields.integer(key, 64)} bits; read here: {BITS}.")
    version = fields.text("version", fields.text("format", "gemm")).lower()
    if version != "gemm" or fields.text("backend", "autoawq").lower() == "llm-awq":
        raise UserError(
            f"{fields.source}: awq version {version!r} of {fields.text('backend', 'autoawq')}; read here: gemm of "
            "autoawq. Take a copy saved as gemm."
        )
    span = group_size(fields, "group_size", "q_group_size")
    modules, rest = modules_of(tensors, PARTS, fields.source)
    parts = {module.name: _parts(module, span) for module in modules}
    is_symmetric = bool(parts) and all((zeros == MIDDLE).all() for _, zeros, _ in parts.values())
    weights = {}
    for module in modules:
        packed, zeros, scales = parts[module.name]
        kind = module.kind("scales")
        format = affine(BITS, span, not is_symmetric, kind)
        name = f"{module.name}.weight"
        make = functools.partial(_bytes, format, module.name, packed, zeros, scales, kind)
        weights[name] = StoredWeight(name, packed.shape[1] * WORD // BITS, packed.shape[0], format, make=make)
    return Contents(joined(weights, rest, fields.source), empty_biases(modules, rest))


def _parts(module: Module, span: int) -> tuple[Cells, Cells, Cells]:
    """(packed [columns, rows / 8], zeros [groups, rows / 8], scales [groups, rows])."""
    packed = module.cells("qweight", ("I32",))
    columns, words = packed.shape
    groups = -(-columns // span) if span else 1
    zeros = module.cells("qzeros", ("I32",), (groups, words))
    return packed, zeros, module.cells("scales", SCALE_KINDS, (groups, words * WORD // BITS))


def _bytes(format: AffineFormat, name: str, packed: Cells, zeros: Cells, scales: Cells, kind: str) -> Bytes:
    return join(
        format, name, np.ascontiguousarray(_in_order(packed).T), scales.T,
        _in_order(zeros).T if format.zero else None, kind,
    )  # fmt: skip


def _in_order(words: Cells) -> Bytes:
    """[n, words] -> [n, 8 * words], outputs in their own order."""
    codes = unpack_words(words, BITS).reshape(*words.shape, len(ORDER))
    return codes[:, :, PLACE].reshape(len(words), -1)

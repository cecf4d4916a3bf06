"""Writes the layouts that quantised Hugging Face checkpoints have: codes, scales and zeros into arrays and a config.

Written from the published layouts, not from the reader: bench/export_quantised.py, bench/hostile.py and tests use it.
Names: gptq and gptq_v2 (also -sym, -8bit), awq, ct-int4 (also -sym), ct-int8 (elements), ct-pack8 (packed), ct-fp8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Entry = tuple[str, tuple[int, ...], bytes]  # dtype by its safetensors name, shape, little-endian bytes
LAYOUTS = (
    "gptq", "gptq_v2", "gptq-sym", "gptq_v2-sym", "gptq-8bit", "awq", "ct-int4", "ct-int4-sym", "ct-int8", "ct-pack8",
    "ct-fp8",
)  # fmt: skip
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
KINDS = {"float16": "F16", "float32": "F32", "int32": "I32", "uint32": "I32", "int64": "I64", "int8": "I8"}


@dataclass(frozen=True)
class Codes:
    """value = scale * (code - zero). codes [rows, columns], scales and zeros [rows, groups]; codes are unsigned."""

    codes: Array
    scales: Array
    zeros: Array
    bits: int
    span: int  # columns a group; 0: the row
    symmetric: bool


def rounded(values: Array, bits: int, span: int, symmetric: bool) -> Codes:
    """To nearest. Asymmetric zeros stay from 1 up: version 1 of gptq has no 0."""
    columns = values.shape[1]
    starts = np.arange(0, columns, span or columns)
    most, middle = (1 << bits) - 1, 1 << (bits - 1)
    high, low = np.maximum.reduceat(values, starts, 1), np.minimum.reduceat(values, starts, 1)
    if symmetric:
        scales = np.maximum(high, -low) / (middle - 1)
        zeros = np.full(scales.shape, middle)
    else:
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        scales = (high - low) / most
        zeros = None
    scales = np.maximum(scales, 2.0**-14).astype(np.float16)  # normal numbers
    if zeros is None:
        zeros = np.rint(-low / scales.astype(np.float32)).clip(1, most)
    wide = np.repeat(scales.astype(np.float32), span or columns, 1)[:, :columns]
    offset = np.repeat(zeros, span or columns, 1)[:, :columns]
    codes = (np.rint(values / wide) + offset).clip(0, most)
    return Codes(codes.astype(np.uint8), scales, zeros.astype(np.uint8), bits, span, symmetric)


def packed(codes: Array, bits: int) -> Array:
    """[n, m] -> [n, ceil(m / (32 / bits))] i32, the first code in the lowest bits."""
    per = 32 // bits
    padded = np.pad(codes.astype(np.uint64), ((0, 0), (0, -codes.shape[1] % per))).reshape(len(codes), -1, per)
    words = (padded << (np.arange(per, dtype=np.uint64) * np.uint64(bits))).sum(-1)
    return words.astype(np.uint32).view(np.int32)


# -- one matrix


def gptq(what: Codes, stored_less: int) -> dict[str, Array]:
    columns = what.codes.shape[1]
    return {
        "qweight": packed(what.codes, what.bits).T,
        "qzeros": packed((what.zeros - stored_less).T, what.bits),
        "scales": what.scales.T,
        "g_idx": (np.arange(columns) // (what.span or columns)).astype(np.int32),
    }


def awq(what: Codes) -> dict[str, Array]:
    def ordered(codes: Array) -> Array:  # [n, outputs]
        return codes.reshape(len(codes), -1, 8)[:, :, AWQ_ORDER].reshape(len(codes), -1)

    return {
        "qweight": packed(ordered(what.codes.T), 4),
        "qzeros": packed(ordered(what.zeros.T), 4),
        "scales": what.scales.T,
    }


def compressed(what: Codes) -> dict[str, Array]:
    parts = {
        "weight_packed": packed(what.codes, what.bits), "weight_scale": what.scales,
        "weight_shape": np.array(what.codes.shape, np.int64),
    }  # fmt: skip
    return parts if what.symmetric else parts | {"weight_zero_point": packed(what.zeros.T, what.bits).T}


def elements(what: Codes) -> dict[str, Array]:
    """int8, its codes signed."""
    return {"weight": (what.codes ^ 0x80).view(np.int8), "weight_scale": what.scales}


# -- a model


def is_linear(name: str, values: Array) -> bool:
    return values.ndim == 2 and name.endswith("_proj.weight")


def quantised(
    tensors: Mapping[str, Array], layout: str, span: int, plain: str = "float16"
) -> tuple[dict[str, Entry], dict[str, Any]]:
    """(entries of a safetensors file, quantization_config): linears in the layout, everything else plain."""
    stem, _, way = layout.partition("-")
    entries: dict[str, Entry] = {}
    for name, values in tensors.items():
        if not is_linear(name, values):
            entries[name] = entry(values.astype(plain))
            continue
        module = name.removesuffix(".weight")
        if layout == "ct-fp8":
            from ridgeline.formats.fp8 import encode

            scales = np.abs(values).max(1, keepdims=True) / np.float32(448)
            entries[f"{module}.weight"] = ("F8_E4M3", values.shape, encode(values / scales, "e4m3").tobytes())
            entries[f"{module}.weight_scale"] = entry(scales)
            continue
        if layout in ("ct-int8", "ct-pack8"):
            what = rounded(values, 8, 0, True)
            parts = elements(what) if layout == "ct-int8" else compressed(what)
        elif stem == "ct":
            parts = compressed(rounded(values, 4, span, way.endswith("sym")))
        elif stem == "awq":
            parts = awq(rounded(values, 4, span, False))
        else:
            what = rounded(values, 8 if way == "8bit" else 4, span, way == "sym")
            parts = gptq(what, 0 if stem == "gptq_v2" else 1)
        entries |= {f"{module}.{part}": entry(array) for part, array in parts.items()}
    return entries, quantization_config(layout, span)


def quantization_config(layout: str, span: int) -> dict[str, Any]:
    stem, _, way = layout.partition("-")
    if stem.startswith("gptq"):
        return {
            "quant_method": "gptq", "bits": 8 if way == "8bit" else 4, "group_size": span or -1, "desc_act": False,
            "sym": way == "sym", "checkpoint_format": stem, "lm_head": False, "true_sequential": True,
            "damp_percent": 0.01, "pack_dtype": "int32", "meta": {"quantizer": ["bench:1"]},
        }  # fmt: skip
    if stem == "awq":
        return {
            "quant_method": "awq", "bits": 4, "group_size": span or -1, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["lm_head"],
        }  # fmt: skip
    grouped = way.startswith("int4") and span
    weights = {
        "num_bits": 4 if way.startswith("int4") else 8, "type": "float" if way == "fp8" else "int",
        "symmetric": way != "int4", "strategy": "group" if grouped else "channel",
        "group_size": span if grouped else None, "dynamic": False, "actorder": None, "block_structure": None,
        "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    activations = {
        "num_bits": 8, "type": weights["type"], "symmetric": True, "strategy": "token", "dynamic": True,
        "group_size": None,
    }  # fmt: skip
    format = {"int8": "int-quantized", "fp8": "float-quantized"}.get(way, "pack-quantized")
    return {
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"], "weights": weights, "output_activations": None,
                "input_activations": activations if format != "pack-quantized" else None,
            },
        },
        "ignore": ["lm_head", "re:.*embed.*"], "kv_cache_scheme": None, "global_compression_ratio": 1.5,
    }  # fmt: skip


# -- a file


def entry(array: Array) -> Entry:
    return KINDS[array.dtype.name], array.shape, np.ascontiguousarray(array).tobytes()


def safetensors(entries: Mapping[str, Entry]) -> bytes:
    """A whole file; written here because numpy has no eight-bit floats."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (kind, shape, data) in entries.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    return len(written).to_bytes(8, "little") + written + b"".join(data for _, _, data in entries.values())


def write(
    directory: Path, config: dict[str, Any], tensors: Mapping[str, Array], layout: str, span: int,
    plain: str = "float16",
) -> Path:  # fmt: skip
    """config.json and model.safetensors of a directory that a loader is named."""
    entries, quantization = quantised(tensors, layout, span, plain)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    (directory / "model.safetensors").write_bytes(safetensors(entries))
    return directory

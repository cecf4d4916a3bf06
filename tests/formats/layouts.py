"""What a quantised checkpoint means, read element by element from the published layouts; and edited directories."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BENCH = Path(__file__).parents[2] / "bench"
FLOATS = {"F16": np.float16, "F32": np.float32}


def writer() -> Any:
    """bench/quantised_layouts.py, which is no package."""
    if "quantised_layouts" not in sys.modules:
        sys.path.insert(0, str(BENCH))
        try:
            importlib.import_module("quantised_layouts")
        finally:
            sys.path.remove(str(BENCH))
    return sys.modules["quantised_layouts"]


class File:
    """Entries of a safetensors file, bit by bit."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        self.header = json.loads(data[8 : 8 + length])
        self.header.pop("__metadata__", None)
        self.data = data[8 + length :]

    def raw(self, name: str) -> tuple[str, tuple[int, ...], bytes]:
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        return entry["dtype"], tuple(entry["shape"]), self.data[begin:end]

    def bits(self, name: str, index: int, width: int) -> int:
        """`width` bits of element `index` of an int32 tensor, as one number."""
        _, _, data = self.raw(name)
        return int.from_bytes(data[4 * index : 4 * index + 4], "little") >> width

    def float_of(self, name: str) -> np.ndarray:
        kind, shape, data = self.raw(name)
        if kind == "BF16":
            wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(shape).astype(np.float64)
        return np.frombuffer(data, FLOATS[kind]).reshape(shape).astype(np.float64)

    def nbytes(self, *endings: str) -> int:
        return sum(len(self.raw(name)[2]) for name in self.header if name.endswith(endings))


def gptq_value(file: File, module: str, config: dict[str, Any], row: int, column: int) -> float:
    """One element of W [out, in]. Stored zeros are one short in version 1."""
    bits = config["bits"]
    per = 32 // bits
    outputs = file.raw(f"{module}.qweight")[1][1]
    mask = (1 << bits) - 1
    code = file.bits(f"{module}.qweight", column // per * outputs + row, bits * (column % per)) & mask
    group = 0 if config["group_size"] == -1 else column // config["group_size"]
    zero = file.bits(f"{module}.qzeros", (group * outputs + row) // per, bits * (row % per)) & mask
    zero += config["checkpoint_format"] == "gptq"
    return float(file.float_of(f"{module}.scales")[group, row] * (code - zero))


def awq_value(file: File, module: str, config: dict[str, Any], row: int, column: int) -> float:
    nibble = (0, 2, 4, 6, 1, 3, 5, 7).index(row % 8)
    words = file.raw(f"{module}.qweight")[1][1]
    code = file.bits(f"{module}.qweight", column * words + row // 8, 4 * nibble) & 15
    group = 0 if config["group_size"] == -1 else column // config["group_size"]
    zero = file.bits(f"{module}.qzeros", group * words + row // 8, 4 * nibble) & 15
    return float(file.float_of(f"{module}.scales")[group, row] * (code - zero))


def eight_bit_float(code: int) -> float:
    """e4m3fn."""
    exponent, fraction = code >> 3 & 15, code & 7
    size = (1 + fraction / 8) * 2.0 ** (exponent - 7) if exponent else fraction / 8 * 2.0**-6
    return -size if code & 128 else size


def compressed_value(file: File, module: str, config: dict[str, Any], row: int, column: int) -> float:
    weights = config["config_groups"]["group_0"]["weights"]
    bits, size = weights["num_bits"], weights["group_size"]
    group = column // size if size else 0
    scale = file.float_of(f"{module}.weight_scale")
    scale = scale.reshape(-1)[0] if scale.size == 1 else scale.reshape(len(scale), -1)[row, group]
    if f"{module}.weight" in file.header:
        kind, shape, data = file.raw(f"{module}.weight")
        code = data[row * shape[1] + column]
        if kind == "F8_E4M3":
            return float(scale * eight_bit_float(code))
        code = code - 256 if code > 127 else code
        zero = 0
        if f"{module}.weight_zero_point" in file.header:
            zero = int(np.frombuffer(file.raw(f"{module}.weight_zero_point")[2], np.int8)[row])
        return float(scale * (code - zero))
    per, middle = 32 // bits, 1 << (bits - 1)
    words = file.raw(f"{module}.weight_packed")[1][1]
    code = file.bits(f"{module}.weight_packed", row * words + column // per, bits * (column % per)) % (2 * middle)
    zero = middle
    if not weights["symmetric"]:  # packed along the rows: [words, groups]
        groups = file.raw(f"{module}.weight_zero_point")[1][1]
        zero = file.bits(f"{module}.weight_zero_point", row // per * groups + group, bits * (row % per)) % (2 * middle)
    return float(scale * ((code - middle) - (zero - middle)))


VALUE: dict[str, Callable[..., float]] = {
    "gptq": gptq_value, "awq": awq_value, "compressed-tensors": compressed_value,
}  # fmt: skip


def meaning(directory: Path, module: str, rows: int, columns: int) -> np.ndarray:
    """[rows, columns] f64 of a quantised module."""
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    file, value = File(directory / "model.safetensors"), VALUE[config["quant_method"]]
    return np.array([[value(file, module, config, row, column) for column in range(columns)] for row in range(rows)])


def write_parts(directory: Path, parts: dict[str, Any], config: dict[str, Any], module: str = "m") -> Path:
    """A directory with one module and no model: arrays, or (dtype, shape, bytes)."""
    tool = writer()
    entries = {
        f"{module}.{name}": part if isinstance(part, tuple) else tool.entry(np.asarray(part))
        for name, part in parts.items()
    }
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"quantization_config": config}))
    (directory / "model.safetensors").write_bytes(tool.safetensors(entries))
    return directory

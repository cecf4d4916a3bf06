"""safetensors: one file, or the shards of an index. Views of the mapped file, so bf16 needs no torch.

The `safetensors` package checks the header (sizes, overlaps, holes); this file only maps the bytes it vouched for.
RawTensor is what lies there; a weight is one of floats. What integers mean is for a layout to say (formats/layout).
Refuses shards outside the directory of the index, and element types that are no weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ridgeline.kit.errors import UserError

from .format import FORMATS, Bytes
from .gguf import map_file
from .weight import StoredWeight

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ELEMENT_FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
MAX_INDEX_BYTES = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """An array as it lies in a file. kind: its dtype's name there (F16, I32, F8_E4M3); data: [bytes] u8, mapped."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: Bytes
    path: Path

    def weight(self) -> StoredWeight:
        """A vector has rows == 1; more than two dimensions fold into rows. UserError unless it is of floats."""
        if self.kind not in ELEMENT_FORMATS:
            raise UserError(
                f"{self.path}: tensor {self.name!r} is {self.kind}; weights read here: "
                f"{', '.join(sorted(ELEMENT_FORMATS))}, and what a known quantization_config describes. "
                "Take an unquantised copy of this model."
            )
        columns = self.shape[-1] if self.shape else 1
        return StoredWeight(
            self.name, math.prod(self.shape[:-1]), columns, FORMATS.get(ELEMENT_FORMATS[self.kind]), self.data
        )


def read_safetensors(directory: Path) -> dict[str, StoredWeight]:
    """Every tensor of a model directory as a weight. UserError when absent, damaged or no weight."""
    return {name: raw.weight() for name, raw in read_raw(directory).items()}


def read_raw(directory: Path) -> dict[str, RawTensor]:
    """Every tensor of a model directory: the index's shards, or model.safetensors. UserError when absent or damaged."""
    index = directory / INDEX
    if not index.exists():
        single = directory / SINGLE
        if not single.exists():
            raise UserError(
                f"{directory} holds neither {SINGLE} nor {INDEX}. Name a directory with safetensors weights."
            )
        return read_file(single)
    places = _weight_map(index)
    shards = {name: read_file(directory / name) for name in sorted(set(places.values()))}
    tensors = {}
    for tensor, shard in places.items():
        if tensor not in shards[shard]:
            raise UserError(f"{index} says {tensor} is in {shard}, but it is not there. Fetch the model again.")
        tensors[tensor] = shards[shard][tensor]
    return tensors


def read_file(path: Path) -> dict[str, RawTensor]:
    """name -> mapped tensor, none of them empty."""
    view = map_file(path)
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening checks the whole header against the file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}. Fetch it again.") from error
    length = int.from_bytes(view[:8], "little")
    header: dict[str, Any] = json.loads(bytes(view[8 : 8 + length]))
    header.pop("__metadata__", None)
    data = np.frombuffer(view, np.uint8)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        if 0 in shape:
            raise UserError(f"{path}: tensor {name!r} has shape {shape}: nothing in it. Fetch it again.")
        tensors[name] = RawTensor(name, entry["dtype"], tuple(shape), data[begin:end], path)
    return tensors


def _weight_map(index: Path) -> Mapping[str, str]:
    """tensor name -> shard file name, every name plain."""
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise UserError(f"{index} is larger than {MAX_INDEX_BYTES} bytes. It is no index.")
        places = json.loads(index.read_bytes())["weight_map"]
        ok = isinstance(places, dict) and bool(places) and all(isinstance(name, str) for name in places.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read {index}: {error}. Fetch the model again.") from error
    if not ok:
        raise UserError(f"{index}: weight_map is not a table of tensor name to file name. Fetch the model again.")
    for name in places.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index} points to {name!r}; shards must be .safetensors files beside the index.")
    return dict(places)

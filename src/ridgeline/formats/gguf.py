"""GGUF files (versions 2 and 3, little-endian), mapped and read with every length checked against the file.

Owns the header grammar; knows no key but general.alignment. Hostile input is expected: every count is bounded by the
bytes that are left before anything is allocated, and everything wrong is one UserError. Strings inside arrays
(vocabularies) are skipped over at open and decoded when asked for.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.kit.errors import UserError

from .format import FORMATS, Bytes
from .weight import StoredWeight

MAGIC = b"GGUF"
ALIGNMENT = 32  # unless general.alignment says otherwise (GGUF specification)
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 65_535  # of a key; the specification's own limit
MAX_TENSOR_NAME_BYTES = 256  # the specification says 64; some writers use more
MAX_TEXT_BYTES = 1 << 24  # of one string: the largest chat templates are tens of kilobytes
MAX_ARRAY_STRINGS = 1 << 22  # over the whole header: 16 times the largest vocabulary published

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY = 7, 8, 9
TENSOR_FORMATS = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 8: "q8_0", 12: "q4_k", 14: "q6_k", 30: "bf16",
}  # fmt: skip
# Known to ggml, not to us: named in the error.
OTHER_TENSOR_TYPES = {
    7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class StringArray:
    """Strings still in the file; `read` decodes them all."""

    view: memoryview
    begin: int
    count: int
    label: str

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())

    def read(self) -> list[str]:
        """UserError when one is not UTF-8."""
        view, length_at, place = self.view, struct.Struct("<Q").unpack_from, self.begin
        strings = []
        try:
            for _ in range(self.count):
                end = place + 8 + length_at(view, place)[0]
                strings.append(str(view[place + 8 : end], "utf-8"))
                place = end
        except UnicodeDecodeError as error:
            raise UserError(f"{self.label}: string {len(strings)} is not UTF-8. The file is damaged.") from error
        return strings


@dataclass(frozen=True, slots=True, eq=False)
class GgufFile:
    """metadata: scalars, str, read-only arrays or StringArray by key. tensors: mapped, without copies."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredWeight]
    file_bytes: int


def read_gguf(path: Path) -> GgufFile:
    """Open and check a GGUF file. Raises UserError for anything that is not a whole, well-formed one."""
    return _Reader(path, map_file(path)).read()


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped read-only. UserError when it cannot be opened or is empty."""
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:  # mmap of nothing
        raise UserError(f"{path} is empty. Fetch it again.") from error


class _Reader:
    """A cursor over the header; every read is checked."""

    def __init__(self, path: Path, view: memoryview) -> None:
        self.path = path
        self.view = view
        self.place = 0
        self.strings_left = MAX_ARRAY_STRINGS

    def read(self) -> GgufFile:
        if bytes(self.view[:4]) != MAGIC:
            raise UserError(f"{self.path} is not a GGUF file: it starts with {bytes(self.view[:4])!r}, not {MAGIC!r}.")
        self.place = 4
        version = self.number("I", "version")
        if version not in (2, 3):
            big_endian = version in (2 << 24, 3 << 24)
            said = "is a big-endian GGUF file" if big_endian else f"has GGUF version {version}"
            raise UserError(f"{self.path} {said}; little-endian versions 2 and 3 can be read. Convert it again.")
        tensor_count = self.count("Q", MAX_TENSORS, 24, "tensors")
        key_count = self.count("Q", MAX_KEYS, 13, "metadata keys")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.text(MAX_NAME_BYTES, "a metadata key")
            if key in metadata:
                self.fail(f"metadata key {key!r} appears twice")
            metadata[key] = self.value(self.number("I", key), key)
        infos = [self.tensor_info() for _ in range(tensor_count)]
        return GgufFile(self.path, version, metadata, self.tensors(infos, self.alignment(metadata)), len(self.view))

    # -- pieces

    def fail(self, what: str) -> None:
        raise UserError(f"{self.path} is damaged: {what} (near byte {self.place}). Fetch or convert it again.")

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes; returns where they begin."""
        begin = self.place
        if size > len(self.view) - begin:
            self.fail(f"{what} needs {size} bytes, {len(self.view) - begin} are left")
        self.place = begin + size
        return begin

    def number(self, code: str, what: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack_from(self.view, self.take(layout.size, what))[0]

    def count(self, code: str, limit: int, least_bytes: int, what: str) -> int:
        """A number of things that take at least `least_bytes` each, so that no loop outlives the file."""
        count = int(self.number(code, f"the number of {what}"))
        if count > limit or count * least_bytes > len(self.view) - self.place:
            self.fail(
                f"it claims {count} {what}; the limit is {limit} and {len(self.view) - self.place} bytes are left"
            )
        return count

    def text(self, limit: int, what: str) -> str:
        length = self.count("Q", limit, 1, f"bytes for {what}")
        begin = self.take(length, what)
        try:
            return str(self.view[begin : begin + length], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")
            raise

    def value(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind], key)
        if kind == BOOL:
            return bool(self.number("B", key))
        if kind == STRING:
            return self.text(MAX_TEXT_BYTES, key)
        if kind != ARRAY:
            self.fail(f"{key} has unknown value type {kind}")
        element = self.number("I", key)
        if element == STRING:
            return self.skip_strings(key)
        if element not in SCALARS and element != BOOL:
            self.fail(f"{key} is an array of type {element}, which is unknown or nested")
        dtype = np.dtype(np.bool_) if element == BOOL else np.dtype("<" + SCALARS[element])
        count = self.count("Q", len(self.view), dtype.itemsize, f"elements in {key}")
        begin = self.take(count * dtype.itemsize, key)
        return np.frombuffer(self.view, dtype, count, begin) if count else np.empty(0, dtype)

    def skip_strings(self, key: str) -> StringArray:
        count = self.count("Q", self.strings_left, 8, f"strings in {key}")
        self.strings_left -= count
        view, length_at, place, size = self.view, struct.Struct("<Q").unpack_from, self.place, len(self.view)
        begin = place
        for index in range(count):
            if place + 8 > size or place + 8 + length_at(view, place)[0] > size:
                self.place = place
                self.fail(f"string {index} of {key} runs past the end")
            place += 8 + length_at(view, place)[0]
        self.place = place
        return StringArray(view, begin, count, f"{self.path}: {key}")

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment!r}, not a power of two up to 1,048,576")
        return int(alignment)

    # -- tensors

    def tensor_info(self) -> tuple[str, list[int], int, int]:
        """(name, dimensions as stored, type number, offset into the data)."""
        name = self.text(MAX_TENSOR_NAME_BYTES, "a tensor name")
        dimensions = self.number("I", name)
        if not 1 <= dimensions <= 4:
            self.fail(f"tensor {name!r} has {dimensions} dimensions, not 1 to 4")
        shape = [int(self.number("Q", name)) for _ in range(dimensions)]
        return name, shape, self.number("I", name), self.number("Q", name)

    def tensors(self, infos: list[tuple[str, list[int], int, int]], alignment: int) -> dict[str, StoredWeight]:
        data_begin = -(-self.place // alignment) * alignment
        data = np.frombuffer(self.view, np.uint8)
        tensors: dict[str, StoredWeight] = {}
        extents = []
        for name, shape, kind, offset in infos:
            weight = self.descriptor(name, shape, kind)
            if name in tensors:
                self.fail(f"tensor {name!r} appears twice")
            begin = data_begin + offset
            end = begin + weight.nbytes
            if offset % alignment:
                self.fail(f"tensor {name!r} begins at {offset}, not a multiple of {alignment}")
            if end > len(data):
                raise UserError(
                    f"{self.path} is truncated: tensor {name!r} ends at byte {end}, the file has {len(data)}. "
                    "Fetch it again."
                )
            extents.append((begin, end, name))
            tensors[name] = self.mapped(weight, data[begin:end])
        extents.sort()
        for (_, end, name), (begin, _, following) in itertools.pairwise(extents):
            if begin < end:
                self.fail(f"tensors {name!r} and {following!r} overlap")
        return tensors

    def descriptor(self, name: str, shape: list[int], kind: int) -> StoredWeight:
        """GGUF lists the fastest dimension first: columns, then rows."""
        if kind not in TENSOR_FORMATS:
            called = OTHER_TENSOR_TYPES.get(kind, f"of unknown type {kind}")
            raise UserError(
                f"{self.path}: tensor {name!r} is {called}; formats read here: {', '.join(FORMATS.names())}. "
                "Take another quantisation of this model (Q4_1, Q8_0, Q4_K_M)."
            )
        columns, rows = shape[0], 1
        for dimension in shape[1:]:
            rows *= dimension
        if columns < 1 or rows < 1:
            self.fail(f"tensor {name!r} has shape {shape}")
        weight = StoredWeight(name, rows, columns, FORMATS.get(TENSOR_FORMATS[kind]))
        if columns % weight.format.group:
            self.fail(f"tensor {name!r} has {columns} columns, not whole {weight.format.name} groups")
        return weight

    def mapped(self, weight: StoredWeight, data: Bytes) -> StoredWeight:
        return StoredWeight(weight.name, weight.rows, weight.columns, weight.format, data)

"""One-operator steps for kernel tests: NumPy arrays in, NumPy arrays out, through rl_execute like everything else."""

# size: builders of native steps take what the native structs hold

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.formats.format import FORMATS
from ridgeline.kernels import native, packing
from ridgeline.kernels.packing import PackedWeight
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, make_storage
from ridgeline.ops.protocols import BlockStorage

Floats = npt.NDArray[np.float32]
GROUP = 32
# Every kind of native format, and every option of one that has its own code.
NATIVE_FORMATS = (
    "f32", "f16", "bf16", "q8_0", "q4_1", "q4_0", "q5_0", "q4_k", "q6_k", "int8", "int8:group=32,zero=1,scale=bf16",
    "int4:group=32", "int4:zero=1,scale=f32", "int4:group=128,zero=1", "int4:group=0", "fp8", "fp8:scale=tensor",
    "fp8:scale=block", "fp8:kind=e5m2",
)  # fmt: skip


def pack(data: npt.NDArray[np.uint8], format_name: str, rows: int, columns: int) -> PackedWeight:
    """By the format's name."""
    return packing.pack(data, FORMATS.get(format_name), rows, columns)


def reads_integers(format_name: str) -> bool:
    return packing.reads_integers(FORMATS.get(format_name))


class Teams:
    """One team per thread count."""

    def __init__(self) -> None:
        self._teams: dict[int, native.Team] = {}

    def __call__(self, threads: int) -> native.Team:
        if threads not in self._teams:
            self._teams[threads] = native.Team(threads)
        return self._teams[threads]

    def close(self) -> None:
        for team in self._teams.values():
            team.close()


def random_weight(format_name: str, rows: int, columns: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Random bits in file order: every quant value occurs, scales are sane."""
    rng = np.random.default_rng([seed, rows, columns])
    if format_name == "f32":
        return rng.standard_normal(rows * columns, np.float32).view(np.uint8)
    if format_name == "bf16":
        values = rng.standard_normal(rows * columns, np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    format = FORMATS.get(format_name)
    if ":" in format_name or format_name in ("int8", "int4", "fp8"):
        return parametrised(format, rows, columns, rng)
    group, nbytes = format.group, format.nbytes(1, format.group)
    blocks = rows * (columns // group)
    data = rng.integers(0, 256, (blocks, nbytes), np.uint8)
    most = {"q4_k": 3e-4, "q6_k": 2e-5}.get(format_name, 0.02)  # under scales of up to 63 and 127
    at, heads = (208, 1) if format_name == "q6_k" else (0, 2 if format_name in ("q4_1", "q4_k") else 1)
    scales = rng.uniform(-most, most, (blocks, heads)).astype(np.float16)
    data[:, at : at + 2 * heads] = scales.view(np.uint8).reshape(blocks, -1)
    return data.reshape(-1)


def parametrised(format: Any, rows: int, columns: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Every code; for the rest what packing random numbers gives. Float8 codes are finite."""
    data = format.pack(rng.standard_normal((rows, columns), np.float32) + rng.uniform(-2, 2, (rows, 1)).astype("f"))
    wide = columns if not format.name.startswith("int4") else (columns + 1) // 2
    codes = data.reshape(rows, -1)[:, :wide] if format.by_rows else data[: rows * columns].reshape(rows, columns)
    codes[:] = rng.integers(0, 256, codes.shape, np.uint8)
    if format.name.startswith("fp8"):
        codes[codes & 0x7F > 0x7B] = 0x7B
    return data


def fitting(format_name: str, columns: int) -> int:
    """`columns`, or for formats of larger blocks as many of those (32 -> 256, 96 -> 768; at most 3)."""
    group = FORMATS.get(format_name).group
    return columns if columns % group == 0 or group <= GROUP else group * min(3, max(1, columns // GROUP))


def unpacked(format_name: str, data: npt.NDArray[np.uint8], rows: int, columns: int) -> Floats:
    return FORMATS.get(format_name).unpack(data, rows, columns)


def quantised(
    x: Floats, outlier: float = 0.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """(values the integer linears see, scales, low planes kept): cpp/quantise.h. Rows must not lie near a threshold."""
    groups = x.reshape(len(x), -1, GROUP)
    peak = np.abs(groups).max(-1, keepdims=True)
    mean = np.abs(x).mean(-1, dtype=np.float64)[:, None, None]
    kept = peak > (outlier * mean if outlier < np.inf else np.inf)
    scales = ((peak / np.float32(127)).astype(np.float32).view(np.uint32) & np.uint32(0xFFFFFFFC)).view(np.float32)
    scales[peak < 1e-30] = 0
    with np.errstate(divide="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
    scaled = (groups * inverse).astype(np.float32)
    whole = np.where(kept, np.rint(scaled * np.float32(128)), 128 * np.rint(scaled))
    return (whole.astype(np.float64) * scales / 128).reshape(x.shape), scales[..., 0], kept[..., 0]


@dataclass
class Arena:
    """Buffers placed one after another; `data` is made when the step runs."""

    size: int = 0
    filled: list[tuple[int, npt.NDArray[Any]]] = field(default_factory=list)
    data: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))

    def place(self, array: npt.NDArray[Any]) -> int:
        offset = self.room(array.nbytes)
        self.filled.append((offset, array))
        return offset

    def room(self, nbytes: int) -> int:
        offset = self.size
        self.size += (nbytes + 63) // 64 * 64 + 64  # a gap: writing past the end would show in no other buffer
        return offset

    def quantised_room(self, rows: int, width: int) -> int:
        return self.room(rows * ((width // GROUP * 88 + 63) // 64 * 64))

    def make(self) -> None:
        self.data = native.aligned(self.size)
        self.data[:] = 0xA5
        for offset, array in self.filled:
            self.data[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def read(self, offset: int, rows: int, width: int) -> Floats:
        return self.data[offset : offset + rows * width * 4].view(np.float32).reshape(rows, width).copy()


def instruction(op: int, **fields: Any) -> native.RlInstr:
    defaults = {"in": -1, "in2": -1, "out": -1, "in_quant": -1, "out_quant": -1, "parts": 1, "scale": 1.0}
    renamed = {"in" if name == "source" else name: value for name, value in fields.items()}
    return native.RlInstr(op=op, **(defaults | renamed))


def set_weight(slot: native.RlWeight, packed: PackedWeight, bias: Floats | None = None) -> None:
    slot.data, slot.bytes = packed.data.ctypes.data, packed.nbytes
    slot.format, slot.rows, slot.columns = packed.format.native, packed.rows, packed.columns
    slot.bias = bias.ctypes.data if bias is not None else None


class Batch:
    """An RlBatch over NumPy arrays that it keeps alive. Plain batches: `tokens` rows, all one sequence."""

    def __init__(self, tokens: int, logit_rows: int = 0, **arrays: Any) -> None:
        self.struct = native.RlBatch(tokens=tokens, sequences=1, logit_rows=logit_rows, table_stride=1)
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        for name, array in arrays.items():
            self[name] = array

    def __setitem__(self, name: str, array: Any) -> None:
        self.arrays[name] = np.ascontiguousarray(array)
        setattr(self.struct, name, self.arrays[name].ctypes.data)


def run(
    team: native.Team, instructions: list[native.RlInstr], arena: Arena, batch: Batch,
    pool: native.Pools | None = None, scratch_bytes: int = 1 << 20, kept: Any = (),
) -> None:  # fmt: skip
    arena.make()
    tape = native.Tape(instructions, kept)
    native.execute(team, tape, arena.data, native.aligned(scratch_bytes), pool, batch.struct)


def linear(
    team: native.Team, x: Floats, weights: list[PackedWeight], *,
    biases: list[Floats | None] | None = None, residual: Floats | None = None, in_place: bool = False,
    outlier: float = 0.0,
) -> Floats:  # fmt: skip
    """[rows, Σ weight rows]; the quantised copy of x is made by an `add` of zeros before it."""
    rows, columns = x.shape
    width = sum(weight.rows for weight in weights)
    arena = Arena()
    source, zeros, copy = arena.place(x), arena.place(np.zeros_like(x)), arena.room(x.nbytes)
    quant = arena.quantised_room(rows, columns) if columns % GROUP == 0 else -1
    in2 = arena.place(residual) if residual is not None else -1
    out = in2 if in_place else arena.room(rows * width * 4)
    add = instruction(
        native.RL_ADD, source=source, in2=zeros, out=copy, out_quant=quant, width_in=columns, width_out=columns,
        outlier=outlier,
    )  # fmt: skip
    product = instruction(
        native.RL_LINEAR, source=copy, in2=in2, out=out, in_quant=quant, parts=len(weights),
        width_in=columns, width_out=width,
    )  # fmt: skip
    for slot, (weight, bias) in enumerate(zip(weights, biases or [None] * len(weights), strict=True)):
        set_weight(product.weight[slot], weight, bias)
    run(team, [add, product], arena, Batch(rows), kept=(weights, biases))
    return arena.read(out, rows, width)


def packed_random(format_name: str, rows: int, columns: int, seed: int = 0) -> PackedWeight:
    return pack(random_weight(format_name, rows, columns, seed), format_name, rows, columns)


@dataclass
class Sequence:
    """What attention tests know of one sequence: all its q, k, v and how much is already kept."""

    qkv: Floats  # [tokens, (heads + 2 kv_heads) dim]
    kept: int = 0
    pages: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))


@dataclass(frozen=True)
class Heads:
    heads: int
    kv_heads: int
    dim: int
    window: int = 0
    storage: str = "bf16"
    sinks: int = 0
    rope: Any = None  # cos, sin [positions, dim / 2], halves; already applied to q and k

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim


def pool_for(heads: Heads, blocks: int, layers: int = 1, has_mass: bool = False) -> tuple[KvPool, native.Pools]:
    """A pool full of NaN (int8 and int4: NaN scales): what attention reads without having written it would show."""
    storage = make_storage(heads.storage)
    kinds = (storage, storage.recent) if isinstance(storage, BlockStorage) else (storage,)
    kept = [
        KvPool(
            kind, layers=layers, kv_heads=heads.kv_heads, head_dim=heads.dim, blocks=blocks, has_mass=has_mass
        )
        for kind in kinds
    ]  # fmt: skip
    for kv in kept:
        kv.data[:] = 0xFF
    return kept[0], native.Pools(kept)


def attend(
    team: native.Team, heads: Heads, pool: native.Pools, entries: list[tuple[Sequence, int]],
    *, layer: int = 0, scratch_bytes: int = 1 << 22, with_quant: bool = False, shift: int = 0,
    trees: dict[int, tuple[int, ...]] | None = None, outlier: float = 0.0, turns: npt.NDArray[np.int32] | None = None,
) -> list[Floats]:  # fmt: skip
    """Runs the next `count` tokens of each sequence as one step; rows [count, heads * dim] per entry.

    shift: how far slots lie before positions. trees: parents of the entries that branch. turns: [threads, room] run
    items of many and of few rows in turns, and write here what they went to.
    """
    parts = [sequence.qkv[sequence.kept : sequence.kept + count] for sequence, count in entries]
    tokens = sum(len(part) for part in parts)
    arena = Arena()
    source = arena.place(np.concatenate(parts))
    width = heads.heads * heads.dim
    out, quant = arena.room(tokens * width * 4), arena.quantised_room(tokens, width) if with_quant else -1
    op = instruction(
        native.RL_ATTEND, source=source, out=out, out_quant=quant, width_in=heads.width, width_out=width,
        heads=heads.heads, kv_heads=heads.kv_heads, head_dim=heads.dim, window=heads.window,
        scale=heads.dim**-0.5, layer=layer, sinks=heads.sinks, outlier=outlier,
    )  # fmt: skip
    if heads.rope is not None:
        op.rotary_dim, op.rope_cos, op.rope_sin = heads.dim, *(table.ctypes.data for table in heads.rope)
    storage = make_storage(heads.storage)
    op.recent = int(isinstance(storage, BlockStorage))
    stride = max((s.kept + c + BLOCK_TOKENS - 1) // BLOCK_TOKENS for s, c in entries)
    table = np.full((len(entries), stride), -1, np.int32)
    for i, (sequence, count) in enumerate(entries):
        needed = (sequence.kept + count + BLOCK_TOKENS - 1) // BLOCK_TOKENS
        first = max(0, sequence.kept - heads.window + 1) // BLOCK_TOKENS if heads.window else 0
        table[i, first:needed] = sequence.pages[first:needed]  # pages behind the window may be gone
        sinks = -(-min(heads.sinks, sequence.kept + count) // BLOCK_TOKENS)
        table[i, :sinks] = sequence.pages[:sinks]
    if isinstance(storage, BlockStorage):
        table = closed_table(storage, entries, stride)
    counts = [count for _, count in entries]
    batch = Batch(
        tokens,
        positions=np.concatenate([np.arange(s.kept, s.kept + c) for s, c in entries]).astype(np.int32) + shift,
        sequence_of=np.repeat(np.arange(len(entries)), counts).astype(np.int32),
        first_token=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        block_table=table,
    )
    batch.struct.sequences, batch.struct.table_stride = len(entries), stride
    if shift or trees:
        batch["slots"] = batch.arrays["positions"] - shift
    if trees:
        masks = np.zeros(tokens, np.uint64)
        for i, parents in trees.items():
            begin = batch.arrays["first_token"][i]
            for place, parent in enumerate(parents):
                masks[begin + place] = (int(masks[begin + parent]) if parent >= 0 else 0) | 1 << place
                depth = int(masks[begin + place]).bit_count() - 1
                batch.arrays["positions"][begin + place] = entries[i][0].kept + shift + depth
        batch["tree"] = masks
    if turns is not None:
        batch["turns"] = turns
        batch.struct.corun, batch.struct.turns_room = 1, turns.shape[1]
    run(team, [op], arena, batch, pool, scratch_bytes)
    rows = arena.read(out, tokens, width)
    if with_quant:
        check_quantised(arena, quant, rows, outlier, heads.dim if heads.dim % GROUP == 0 else 0)
    for sequence, count in entries:
        sequence.kept += count
    bounds = np.cumsum([0, *counts])
    return [rows[a:b] for a, b in pairwise(bounds)]


def closed_table(storage: Any, entries: list[tuple[Sequence, int]], stride: int) -> npt.NDArray[np.int32]:
    """[2, entries, stride]: whole blocks with this step's; sinks, and what no block closed before this step."""
    table = np.full((2, len(entries), stride), -1, np.int32)
    for i, (sequence, count) in enumerate(entries):
        after, block = sequence.kept + count, storage.group
        whole, open_from = after // block * block // BLOCK_TOKENS, sequence.kept // block * block // BLOCK_TOKENS
        table[0, i, :whole] = sequence.pages[:whole]
        needed = -(-after // BLOCK_TOKENS)
        table[1, i, open_from:needed] = sequence.pages[open_from:needed]
        sinks = -(-min(storage.sinks, after) // BLOCK_TOKENS)
        table[1, i, :sinks] = sequence.pages[:sinks]
    return table


def check_quantised(arena: Arena, offset: int, rows: Floats, outlier: float = 0.0, width_at_once: int = 0) -> None:
    """The quantised copy at `offset` is that of `rows` (layout: cpp/quantise.h): same scales, values and sums.

    width_at_once: columns that share a mean magnitude (attend: of a head); 0: all.
    """
    count, width = rows.shape
    is_wide = native.isa().startswith("avx512")
    panel, start = (12, 0x4B400000) if is_wide else (4, 0)
    expected, scales, kept = quantised(rows.reshape(-1, width_at_once or width), outlier)
    expected, scales, kept = expected.reshape(count, width), scales.reshape(count, -1), kept.reshape(count, -1)
    groups = width // GROUP
    for first in range(0, count, panel):
        inside = min(panel, count - first)
        begin, here = offset + first * groups * 88, slice(first, first + inside)
        raw = arena.data[begin : begin + inside * groups * 56].reshape(groups, 56 * inside)
        low = arena.data[begin + inside * groups * 56 : begin + inside * groups * 88].reshape(groups, -1)
        planes = [
            np.ascontiguousarray(bytes_).view(np.int8).reshape(groups, inside, 8, 4).transpose(1, 0, 2, 3).astype(int)
            for bytes_ in (raw[:, : 32 * inside], low)
        ]
        whole = 128 * planes[0] + planes[1]
        words = np.ascontiguousarray(raw[:, 32 * inside :]).reshape(groups, 6, -1, 4).transpose(1, 2, 0, 3)
        floats, integers = (np.ascontiguousarray(words).view(kind)[..., 0] for kind in (np.float32, np.int32))
        np.testing.assert_array_equal(floats[0], scales[here])
        np.testing.assert_array_equal(floats[1], np.float32(12582912) * scales[here])
        np.testing.assert_array_equal(integers[2], start - whole.sum((2, 3)))
        np.testing.assert_array_equal(floats[3], scales[here] * (whole.sum((2, 3)) / 128).astype(np.float32))
        np.testing.assert_array_equal(integers[4], whole[:, :, :4].sum((2, 3)))
        np.testing.assert_array_equal(integers[5], kept[here])
        assert not planes[1][~kept[here]].any()
        values = whole.reshape(inside, groups, GROUP) * (scales[here].astype(np.float64) / 128)[..., None]
        np.testing.assert_array_equal(values.reshape(inside, width), expected[here])

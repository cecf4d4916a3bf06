"""The native library and the mirror of its structs (cpp/ridgeline.h): the one place where Python meets the C ABI.

Loads libridgeline.so beside this file on first use and refuses another ABI. Called by run/ and the tests only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError, UserError

Bytes = npt.NDArray[np.uint8]

ABI_VERSION = 11  # RL_ABI_VERSION
LIBRARY = Path(__file__).with_name("libridgeline.so")
ISAS = ("plain", "avx2", "avx512", "avx512_bf16")  # by RlIsa number

(
    RL_F32, RL_BF16, RL_Q8_0, RL_Q4_1, RL_Q4_0, RL_Q5_0, RL_Q4_K, RL_Q6_K, RL_INT8, RL_INT8_ZERO, RL_INT4, RL_INT4_ZERO,
    RL_E4M3, RL_E5M2, RL_F16,
) = range(15)  # fmt: skip  # RlFormat: the low byte
RL_KV_F32, RL_KV_BF16, RL_KV_INT8, RL_KV_INT4 = range(4)  # RlStorage
(
    RL_EMBED, RL_NORM, RL_LINEAR, RL_ROPE, RL_ATTEND, RL_ACTIVATION, RL_ADD, RL_GATHER, RL_SAMPLE, RL_HEAD_NORM,
    RL_ROUTE, RL_DISPATCH, RL_EXPERTS, RL_COMBINE, RL_CONV, RL_SCAN, RL_GATED_NORM,
) = range(1, 18)  # fmt: skip  # RlOp
RL_SILU, RL_GELU_TANH = range(2)  # RlActivation
RL_ROPE_INTERLEAVED, RL_ROUTE_SIGMOID, RL_ROUTE_RENORMALISE = 1, 2, 4  # RlFlag
RL_MAX_EXPERTS = 1024

# -(100 * instruction + fault) is what rl_execute answers to a bad tape (Fault in cpp/tape.cpp).
FAULTS = {
    1: "a null or misaligned argument",
    2: "an unknown operation",
    3: "an unknown weight format",
    4: "a weight that is null, misaligned or of another size than its shape",
    5: "widths that do not fit together",
    6: "a missing or misaligned buffer",
    7: "a batch with a token, position, block, row or sampling entry out of range",
    8: "an impossible number or size of heads",
    9: "no KV pool, or one of an unknown storage",
    10: "too little scratch memory",
}


class RlWeight(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p), ("bias", c_void_p), ("bytes", c_int64),
        ("format", c_int32), ("rows", c_int32), ("columns", c_int32), ("reserved", c_int32),
    )  # fmt: skip


class RlInstr(ctypes.Structure):
    _fields_ = (
        ("op", c_int32), ("line", c_int32),
        ("per_logit_row", c_int32), ("parts", c_int32), ("flags", c_int32), ("activation", c_int32),
        ("width_in", c_int32), ("width_out", c_int32),
        ("in", c_int64), ("in2", c_int64), ("out", c_int64), ("in_quant", c_int64), ("out_quant", c_int64),
        ("layer", c_int32), ("heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32),
        ("rotary_dim", c_int32), ("window", c_int32), ("group", c_int32), ("sinks", c_int32),
        ("eps", c_float), ("scale", c_float),
        ("in3", c_int64), ("in4", c_int64), ("work", c_int64),
        ("experts", c_int32), ("chosen", c_int32), ("groups", c_int32), ("groups_kept", c_int32),
        ("rope_cos", c_void_p), ("rope_sin", c_void_p), ("weight", RlWeight * 3),
        ("states", c_int32), ("taps", c_int32), ("outlier", c_float), ("recent", c_int32),
    )  # fmt: skip


class RlPool(ctypes.Structure):
    _fields_ = (
        ("base", c_void_p), ("block_stride", c_int64), ("layer_stride", c_int64), ("head_stride", c_int64),
        ("page_bytes", c_int64), ("storage", c_int32), ("blocks", c_int32), ("mass", c_void_p),
    )  # fmt: skip


class RlSampling(ctypes.Structure):
    _fields_ = (
        ("seed", c_uint64), ("choice", c_int32), ("position", c_int32), ("target", c_int32), ("logprobs", c_int32),
        ("temperature", c_float), ("top_p", c_float), ("min_p", c_float), ("top_k", c_int32),
        ("repetition", c_float), ("presence", c_float), ("frequency", c_float),
        ("history_begin", c_int32), ("history_end", c_int32), ("bias_begin", c_int32), ("bias_end", c_int32),
        ("law", c_int32), ("mask", c_int32),
    )  # fmt: skip


class RlBatch(ctypes.Structure):
    _fields_ = (
        ("tokens", c_int32), ("sequences", c_int32), ("logit_rows", c_int32), ("table_stride", c_int32),
        *((name, c_void_p) for name in (
            "token_ids", "positions", "sequence_of", "first_token", "block_table", "slots", "tree", "logit_token",
            "sampling", "history_ids", "history_counts", "bias_ids", "bias_values",
            "sampled", "logprob", "rank", "top_ids", "top_logprobs", "laws", "line_ns", "line_experts",
        )),
        ("state", c_void_p), ("slot_stride", c_int64), ("state_layer_stride", c_int64), ("state_slots", c_int64),
        ("state_slot", c_void_p), ("masks", c_void_p), ("corun", c_int32), ("turns_room", c_int32),
        ("turns", c_void_p),
    )  # fmt: skip


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "rl_abi_version": (c_int32, []),
    "rl_isa_available": (c_int32, []),
    "rl_isa_set": (c_int32, [c_int32]),
    "rl_isa_get": (c_int32, []),
    "rl_team_new": (c_void_p, [c_int32]),
    "rl_team_free": (None, [c_void_p]),
    "rl_execute": (c_int64, [c_void_p, c_void_p, c_int32, c_void_p, c_void_p, c_int64, c_void_p, c_int32, c_void_p]),
    "rl_scratch_bytes": (c_int64, [c_int32] * 6),
    "rl_packed_bytes": (c_int64, [c_int32] * 3),
    "rl_pack": (c_int32, [c_int32, c_void_p, c_int32, c_int32, c_void_p]),
    "rl_unpack": (c_int32, [c_int32, c_void_p, c_int32, c_int32, c_void_p]),
    "rl_measure_read": (c_double, [c_void_p, c_void_p, c_int64, c_int32]),
    "rl_measure_flops": (c_double, [c_void_p, c_int32, c_int64, c_int32, POINTER(c_double)]),
    "rl_measure_barrier": (c_double, [c_void_p, c_int64]),
}


@cache
def library() -> ctypes.CDLL:
    """The loaded library. UserError when it is missing or of another version."""
    if not LIBRARY.exists():
        raise UserError(
            f"the CPU kernels are not built ({LIBRARY} is missing). In a source tree run scripts/build; "
            f"elsewhere reinstall ridgeline where a C++ compiler is present."
        )
    loaded = ctypes.CDLL(str(LIBRARY))
    try:
        found = int(loaded.rl_abi_version())
    except AttributeError:
        found = -1
    if found != ABI_VERSION:
        raise UserError(
            f"{LIBRARY} has ABI version {found}, this Ridgeline needs {ABI_VERSION}. Run scripts/build, or reinstall."
        )
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def is_available() -> bool:
    """Whether library() would succeed."""
    try:
        library()
    except UserError:
        return False
    return True


def abi_version() -> int:
    return int(library().rl_abi_version())


# -- instruction sets


def instruction_sets() -> tuple[str, ...]:
    """Those that this machine runs, plainest first."""
    mask = library().rl_isa_available()
    return tuple(name for number, name in enumerate(ISAS) if mask >> number & 1)


def isa() -> str:
    """The one in use; the best available until set_isa() is called."""
    return ISAS[library().rl_isa_get()]


def set_isa(name: str) -> None:
    """For the whole process; not while a step runs. UserError names those available."""
    if name not in ISAS or library().rl_isa_set(ISAS.index(name)) != 0:
        raise UserError(f"instruction set {name!r} cannot run here. Available: {', '.join(instruction_sets())}.")


available_isas, get_isa = instruction_sets, isa


# -- memory and threads


def aligned(nbytes: int) -> Bytes:
    """[nbytes] zero bytes that begin on a cache line, as the library wants its buffers and weights."""
    raw = np.zeros(nbytes + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + nbytes]


def scratch_bytes(threads: int, tokens: int, positions: int, heads: int, head_dim: int, vocabulary: int) -> int:
    """Scratch that steps of at most these sizes need."""
    return int(library().rl_scratch_bytes(threads, tokens, positions, heads, head_dim, vocabulary))


class Team:
    """A persistent team of `threads` threads, the caller being one of them. `calls` counts native steps (D9)."""

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise UserError(f"--threads must be at least 1, not {threads}.")
        self.threads = threads
        self.calls = 0
        self.pointer: int | None = library().rl_team_new(threads)
        if not self.pointer:
            raise UserError(f"the system refused {threads} threads. Try fewer with --threads.")

    def close(self) -> None:
        """Joins the threads; again: does nothing."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            library().rl_team_free(pointer)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.close()


# -- execution


class Tape:
    """Instructions in order; `kept` is whatever they point to, alive as long as the tape."""

    def __init__(self, instructions: Sequence[RlInstr], kept: Iterable[Any] = ()) -> None:
        self.count = len(instructions)
        self.instructions = (RlInstr * max(self.count, 1))(*instructions)
        self.kept = kept
        self.pointer = ctypes.addressof(self.instructions)
        self._memory: tuple[Any, ...] = (None, None)
        self._addresses: tuple[int, int, int] = (0, 0, 0)

    def addresses(self, arena: Bytes, scratch: Bytes) -> tuple[int, int, int]:
        """(arena, scratch, scratch bytes), looked up once: asking NumPy costs more than the call itself."""
        if self._memory[0] is not arena or self._memory[1] is not scratch:
            self._memory = (arena, scratch)
            self._addresses = (arena.ctypes.data, scratch.ctypes.data, scratch.nbytes)
        return self._addresses


class Pools:
    """Array of RlPool: one for every memory.kv_pool.KvPool (or what has its attributes), in the order of groups."""

    def __init__(self, kept: Iterable[Any]) -> None:
        self.kept = tuple(kept)  # the mappings must outlive the structs
        self.count = len(self.kept)
        self.structs = (RlPool * max(self.count, 1))(*(_pool(kv) for kv in self.kept))
        self.pointer = ctypes.addressof(self.structs)


def _pool(kv: Any) -> RlPool:
    strides = (kv.block_stride, kv.layer_stride, kv.head_stride)
    mass = getattr(kv, "mass", None)
    return RlPool(
        kv.data.ctypes.data, *strides, kv.page_bytes, kv.storage.native, kv.blocks,
        None if mass is None else mass.ctypes.data,
    )  # fmt: skip


def set_states(batch: RlBatch, states: Any) -> None:
    """Point a batch at a memory.recurrent_pool.RecurrentPool, which must outlive it."""
    batch.state, batch.state_slots = states.data.ctypes.data, states.slots
    batch.slot_stride, batch.state_layer_stride = states.slot_bytes, states.layer_bytes


def execute(team: Team, tape: Tape, arena: Bytes, scratch: Bytes, pools: Pools | None, batch: RlBatch) -> None:
    """Runs one step: exactly one native call. InvariantError names the instruction a bad tape stumbles over."""
    if team.pointer is None:
        raise InvariantError("a step on a closed team")
    answer = library().rl_execute(
        team.pointer, tape.pointer, tape.count, *tape.addresses(arena, scratch),
        *((pools.pointer, pools.count) if pools is not None else (None, 0)), ctypes.addressof(batch),
    )  # fmt: skip
    team.calls += 1
    if answer != 0:
        index, fault = divmod(-answer, 100)
        operation = tape.instructions[index].op if index < tape.count else 0
        what = FAULTS.get(fault, f"fault {fault}")
        raise InvariantError(f"native instruction {index} (operation {operation}) has {what}")


# -- ceilings


def measure_read(team: Team, data: Bytes, threads: int) -> float:
    """Seconds in which `threads` threads together read all of `data` once."""
    return float(library().rl_measure_read(team.pointer, data.ctypes.data, data.nbytes, threads))


def measure_flops(team: Team, kind: int, iterations: int, threads: int) -> tuple[float, float]:
    """(seconds, operations done) of a burst; kind 0: f32 FMA, 1: int8 dot, 2: bf16 dot (0 operations: not here)."""
    operations = c_double(0.0)
    seconds = library().rl_measure_flops(team.pointer, kind, iterations, threads, ctypes.byref(operations))
    return float(seconds), float(operations.value)


def measure_barrier(team: Team, iterations: int) -> float:
    """Seconds that one barrier of the whole team takes."""
    return float(library().rl_measure_barrier(team.pointer, iterations))

"""Probes: one burst of reading, of arithmetic, of barriers. Ours are native; numpy's stand in where no library is.

numpy's probes use what numpy uses (BLAS threads, one reading thread), so their ceilings are a lower bound; Machine
says which were used.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.kernels import native

KIND_NUMBERS = {"f32": 0, "int8": 1, "bf16": 2}  # rl_measure_flops
BURST_S = 0.015  # long enough for the clock to settle, short enough that quick stays quick


class NativeProbe:
    """rl_measure_* on a thread team of the native library."""

    source = "native"

    def __init__(self, threads: int) -> None:
        self._team = native.Team(threads)
        self._data: npt.NDArray[np.uint8] = np.ones(0, np.uint8)
        self._iterations: dict[tuple[str, int], int] = {}

    def read_s(self, set_bytes: int, threads: int) -> float:
        if len(self._data) < set_bytes:
            self._data = np.ones(set_bytes, np.uint8)  # written, so that every page is its own
        return float(native.measure_read(self._team, self._data[:set_bytes], threads))

    def flops_per_s(self, kind: str, threads: int) -> float | None:
        iterations = self._iterations.get((kind, threads), 10_000)
        seconds, operations = native.measure_flops(self._team, KIND_NUMBERS[kind], iterations, threads)
        if seconds <= 0 or operations <= 0:
            return None
        if (kind, threads) not in self._iterations:
            self._iterations[kind, threads] = max(1, int(iterations * BURST_S / seconds))
            return self.flops_per_s(kind, threads)
        return float(operations / seconds)

    def barrier_s(self, threads: int) -> float:
        return float(native.measure_barrier(self._team, 2000))


class NumpyProbe:
    """Where the native library is missing: a sum over the set, and a BLAS matrix product."""

    source = "numpy"

    def __init__(self) -> None:
        self._data = np.ones(0, np.int64)
        self._square = np.ones((512, 512), np.float32)

    def read_s(self, set_bytes: int, threads: int) -> float:
        if self._data.nbytes < set_bytes:
            self._data = np.ones(set_bytes // 8, np.int64)
        return _seconds(lambda: self._data[: set_bytes // 8].max())

    def flops_per_s(self, kind: str, threads: int) -> float | None:
        if kind != "f32":
            return None
        return 8 * 2 * 512**3 / _seconds(lambda: [self._square @ self._square for _ in range(8)])

    def barrier_s(self, threads: int) -> float:
        return 0.0


def best_probe(threads: int) -> NativeProbe | NumpyProbe:
    return NativeProbe(threads) if native.is_available() else NumpyProbe()


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets of the native library that this machine runs, plainest first."""
    return tuple(native.instruction_sets()) if native.is_available() else ()


def native_version() -> str:
    return f"native abi {native.abi_version()}" if native.is_available() else "no native library"


def _seconds(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin

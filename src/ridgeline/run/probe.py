"""Probes: one burst of reading, of arithmetic, of barriers, of copies. Ours are native; numpy's stand in elsewhere.

numpy's probes use what numpy uses (BLAS threads, one reading thread), so their ceilings are a lower bound; Machine
says which were used. Copies to a device are torch's, and only where a device and torch are.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import mmap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ridgeline.kernels import native

KIND_NUMBERS = {"f32": 0, "int8": 1, "bf16": 2}  # rl_measure_flops
BURST_S = 0.015  # long enough for the clock to settle, short enough that quick stays quick
PAGES = 4096  # touched for the cost of a page fault: 16 MiB
DEVICE_COPY_BYTES = 256 << 20
DEVICE_FILES = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # without one of them torch is not even imported


class Probe(Protocol):
    """What measuring needs. Seconds are of one burst."""

    source: str

    def read_s(self, set_bytes: int, threads: int) -> float:
        """One pass over a resident set."""
        ...

    def flops_per_s(self, kind: str, threads: int) -> float | None:
        """One burst of at most some 10 ms; None: this machine has no such kind."""
        ...

    def barrier_s(self, threads: int) -> float: ...

    def dispatch_s(self, threads: int) -> float:
        """One job handed to the thread team and back."""
        ...

    def copy_s(self, nbytes: int, threads: int) -> float:
        """Copying so many bytes from memory to memory."""
        ...

    def page_fault_s(self) -> float:
        """The first touch of one page."""
        ...


class Watch(Protocol):
    """Who else uses the processors; run.noise.CpuWatch."""

    def foreign_cpu_share(self) -> float | None: ...


class HostProbe:
    """What needs no kernel of ours: copies in memory, page faults."""

    def __init__(self) -> None:
        self._source = self._target = np.ones(0, np.uint8)

    def copy_s(self, nbytes: int, threads: int) -> float:
        """Copying `nbytes` in memory, shared out to `threads` threads (NumPy lets go of the interpreter meanwhile)."""
        if len(self._source) < nbytes:
            self._source, self._target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
        size = nbytes // threads
        parts = [slice(index * size, (index + 1) * size) for index in range(threads)]
        if threads == 1:
            return _seconds(lambda: np.copyto(self._target[parts[0]], self._source[parts[0]]))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(time.sleep, [0.001] * threads))  # started before the clock
            return _seconds(lambda: list(pool.map(lambda p: np.copyto(self._target[p], self._source[p]), parts)))

    def page_fault_s(self) -> float:
        """The first touch of a page of anonymous memory, small pages."""
        mapping = mmap.mmap(-1, PAGES * mmap.PAGESIZE)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                mapping.madvise(mmap.MADV_NOHUGEPAGE)
        pages = np.frombuffer(mapping, np.uint8)[:: mmap.PAGESIZE]
        first, again = (_seconds(lambda: pages.fill(1)) for _ in range(2))
        return max(0.0, first - again) / PAGES


class NativeProbe(HostProbe):
    """rl_measure_* on a thread team of the native library."""

    source = "native"

    def __init__(self, threads: int) -> None:
        super().__init__()
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

    def dispatch_s(self, threads: int) -> float:
        """One job handed from Python to the team and back."""
        return _seconds(lambda: native.measure_barrier(self._team, 1))


class NumpyProbe(HostProbe):
    """Where the native library is missing: a maximum over the set, and a BLAS matrix product."""

    source = "numpy"

    def __init__(self) -> None:
        super().__init__()
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

    def dispatch_s(self, threads: int) -> float:
        return 0.0


def device_copies(torch: Any = None) -> Iterator[tuple[str, str, float]]:
    """(from, to, bytes/s) of pinned host memory to every device and back, the best of 5. Nothing without torch or
    without a device; torch: the module, when a caller has it already."""
    if torch is None:
        if not any(path.exists() for path in DEVICE_FILES) or importlib.util.find_spec("torch") is None:
            return
        torch = importlib.import_module("torch")  # seconds and gigabytes: only where there is a device to ask
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = f"cuda:{number}"
        host = torch.empty(DEVICE_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
        device = torch.empty(DEVICE_COPY_BYTES, dtype=torch.uint8, device=name)
        for places, source, target in ((("host", name), host, device), ((name, "host"), device, host)):
            seconds = []
            for _ in range(5):
                torch.cuda.synchronize(number)
                begin = time.perf_counter()
                target.copy_(source, non_blocking=True)
                torch.cuda.synchronize(number)
                seconds.append(time.perf_counter() - begin)
            yield *places, DEVICE_COPY_BYTES / min(seconds)


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

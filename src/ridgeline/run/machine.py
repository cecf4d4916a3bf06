"""Machine: the ceilings of this computer, measured here, and its fingerprint. Everything above asks here for a roof.

Owns the probes and their cache (RIDGELINE_HOME/machine.json, keyed by fingerprint and threads). Refuses to mix a
catalogue value in: what stands here was measured by `source` at `measured_at`. Each rate is the best of several
short bursts (a ceiling is the fastest seen; other work only lowers it); the barrier is a median.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Protocol

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.kit.home import home
from ridgeline.kit.version import __version__

from .probe import best_probe, instruction_sets, native_version

# Working sets. The largest is several times any last-level cache we know of in one socket's share; the middle one is
# a small model's weights; the small one fits the cache of most servers.
SETS_BYTES = (16 << 20, 80 << 20, 256 << 20)
KINDS = ("f32", "int8", "bf16")


class Fingerprint(msgspec.Struct, frozen=True):
    """What must be equal for two measurements to be comparable."""

    cpu: str
    cores: int  # usable: affinity and cgroup quota
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    kernel: str
    library: str  # version of Ridgeline and of the native library


class ReadRate(msgspec.Struct, frozen=True):
    threads: int
    set_bytes: int
    bytes_per_s: float  # best burst
    median_bytes_per_s: float


class Machine(msgspec.Struct, frozen=True):
    """Ceilings for `threads` threads. source: "native" (our kernels' probes) or "numpy" (no native library)."""

    fingerprint: Fingerprint
    threads: int
    reads: tuple[ReadRate, ...]
    flops_per_s: dict[str, float]  # by kind: f32 FMA, int8 dot, bf16 dot; a kind this machine lacks is absent
    barrier_s: float
    measured_at: str  # ISO 8601, UTC
    source: str = "native"
    host_s: float = 0.0  # between two native calls; measured by calibration, 0: not measured
    # Share of its peak that a kernel reached here, by "<operator kind> <number kind>"; empty until calibrated.
    efficiency: dict[str, float] = {}

    @property
    def read_bytes_per_s(self) -> float:
        """Read bandwidth from memory (the largest set), bytes/s."""
        return max((read for read in self.reads if read.threads == self.threads), key=_set).bytes_per_s

    def bandwidth(self, set_bytes: float | None = None, threads: int | None = None) -> float:
        """Read bandwidth for a working set that is read over and over: between measured sets, interpolated in log size.

        Outside the measured sizes the nearest one holds. None: the largest set (memory).
        """
        known = sorted((read for read in self.reads if read.threads == (threads or self.threads)), key=_set)
        if not known:
            raise UserError(f"read bandwidth was not measured for {threads} threads; run doctor --measure.")
        if set_bytes is None or set_bytes >= known[-1].set_bytes:
            return known[-1].bytes_per_s
        if set_bytes <= known[0].set_bytes:
            return known[0].bytes_per_s
        for low, high in itertools.pairwise(known):
            if set_bytes <= high.set_bytes:
                share = math.log(set_bytes / low.set_bytes) / math.log(high.set_bytes / low.set_bytes)
                return low.bytes_per_s + share * (high.bytes_per_s - low.bytes_per_s)
        return known[-1].bytes_per_s

    def peak(self, kind: str = "f32") -> float:
        """FLOP/s (or operations/s) of a kind; a kind that was not measured falls back to f32."""
        return self.flops_per_s.get(kind, self.flops_per_s["f32"])

    def attainable(self, op_kind: str, kind: str) -> float:
        """The peak that this operator's kernel reaches when nothing else limits it; the peak itself until calibrated.

        Used to predict. A roof is always `peak`, so that a slow kernel cannot hide behind its own measurement.
        """
        return self.peak(kind) * self.efficiency.get(f"{op_kind} {kind}", 1.0)

    def ridge(self, kind: str = "f32", set_bytes: float | None = None) -> float:
        """FLOPs per byte at which compute and memory take equally long (A5)."""
        return self.peak(kind) / self.bandwidth(set_bytes)


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


def measure(threads: int | None = None, quick: bool = True, probe: Probe | None = None) -> Machine:
    """Measure this machine, about 1 s (quick) or 4 s. Best of 5 (quick) or 20 bursts."""
    cores = usable_cores()
    threads = threads or cores
    if probe is None:
        probe = best_probe(threads)
    bursts = 5 if quick else 20
    reads = []
    for count in sorted({1, threads}):
        for set_bytes in SETS_BYTES if count == threads else SETS_BYTES[-1:]:
            probe.read_s(set_bytes, count)  # first touch
            seconds = sorted(probe.read_s(set_bytes, count) for _ in range(bursts))
            reads.append(ReadRate(count, set_bytes, set_bytes / seconds[0], set_bytes / statistics.median(seconds)))
    flops = {}
    for kind in KINDS:
        rates = [probe.flops_per_s(kind, threads) for _ in range(bursts)]
        if None not in rates:
            flops[kind] = max(rate for rate in rates if rate is not None)
    barrier_s = statistics.median(probe.barrier_s(threads) for _ in range(bursts))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Machine(fingerprint(), threads, tuple(reads), flops, barrier_s, now, probe.source)


def load_or_measure(threads: int | None = None, path: Path | None = None, again: bool = False) -> Machine:
    """The cached measurement of this fingerprint and thread count, or a new quick one (which is then cached)."""
    threads = threads or usable_cores()
    path = path or home() / "machine.json"
    key = _key(threads)
    known = {} if again else _read(path)
    if key not in known:
        return store(measure(threads, quick=not again), path)
    return known[key]


def store(machine: Machine, path: Path | None = None) -> Machine:
    """Keep a measurement (or a calibrated one) for the next run; returns it."""
    path = path or home() / "machine.json"
    known = _read(path) | {_key(machine.threads): machine}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(known)))
    fresh.replace(path)  # whole or not at all: another process may be reading
    return machine


def raise_ceilings(machine: Machine, probe: Probe | None = None, path: Path | None = None) -> Machine:
    """Probe again (1 s) and keep the faster of old and new: for when something ran above a measured roof (A5)."""
    fresh = measure(machine.threads, probe=probe)
    old = {(read.threads, read.set_bytes): read for read in machine.reads}
    reads = tuple(
        max(read, old.get((read.threads, read.set_bytes), read), key=lambda each: each.bytes_per_s)
        for read in fresh.reads
    )
    flops = {kind: max(rate, machine.flops_per_s.get(kind, 0.0)) for kind, rate in fresh.flops_per_s.items()}
    barrier_s = min(fresh.barrier_s, machine.barrier_s)
    # efficiency is a share of the old peak; kept, because calibrating again takes longer than being a little off
    raised = msgspec.structs.replace(machine, reads=reads, flops_per_s=flops, barrier_s=barrier_s)
    return store(msgspec.structs.replace(raised, measured_at=fresh.measured_at), path)


def _key(threads: int) -> str:
    return f"{threads} {msgspec.json.encode(fingerprint()).decode()}"


def _read(path: Path) -> dict[str, Machine]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Machine])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}  # a cache: what cannot be read is measured again


def fingerprint() -> Fingerprint:
    library = f"ridgeline {__version__}, {native_version()}"
    return Fingerprint(cpu_name(), usable_cores(), instruction_sets(), memory_bytes(), platform.release(), library)


def usable_cores() -> int:
    """Cores this process may use: CPU affinity, cut by the cgroup's quota (v2, then v1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(_quota() or cores)))


def _quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Memory this process may use: the machine's, cut by the cgroup's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return total


def available_bytes() -> int:
    """Memory that could be taken now without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) << 10, memory_bytes())
    except OSError:
        pass
    return memory_bytes()


def _set(read: ReadRate) -> int:
    return read.set_bytes

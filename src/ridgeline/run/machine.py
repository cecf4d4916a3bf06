"""Machine: the ceilings of this computer, measured here, and its fingerprint. Everything above asks here for a roof.

Owns what is measured and its cache (RIDGELINE_HOME/machine.json, keyed by fingerprint and threads). Refuses to mix a
catalogue value in. Each rate is the best of several bursts (a ceiling is the fastest seen; other work only lowers it);
costs (barrier, dispatch, page fault) are medians. What was measured while others used the machine holds for a minute.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.kit.home import home
from ridgeline.kit.version import __version__

from .levels import CacheLevel, cache_levels, level_name, sets_of
from .noise import CpuWatch
from .probe import Probe, Watch, best_probe, device_copies, instruction_sets, native_version
from .rates import LineRate

# Working sets. The largest is several times the last-level cache of most machines (larger caches: MEMORY_SETS times
# theirs); the middle one is a small model's weights; the small one fits the cache of most servers.
SETS_BYTES = (16 << 20, 80 << 20, 256 << 20)
MEMORY_SETS = 4  # times all last-level caches: what is read there comes from memory
KINDS = ("f32", "int8", "bf16")
COPY_BYTES = 64 << 20
LINE_BYTES = 64  # a read of so little is the probe's own overhead
IN_CACHE_BYTES = 4 << 20  # below, a pass takes microseconds: more bursts, and the overhead is taken off
BUSY = 0.1  # share of the machine others may use before what is measured counts as disturbed
RETRY_S, KERNELS_RETRY_S = 60, 600  # a disturbed measurement, or calibration, is tried again after this
KEEP_S = 86_400  # the best of rates is taken over this long: neighbours of a virtual machine come and go


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
    level: str = ""  # "L2", ..., "memory": the cache that holds such a set; "": the system does not say


class CopyRate(msgspec.Struct, frozen=True):
    """From and to: "host", or a device such as "cuda:0" (then from pinned memory)."""

    source: str
    target: str
    threads: int
    bytes_per_s: float  # bytes copied, not read plus written


class Pace(msgspec.Struct, frozen=True):
    """What this machine reaches right now, as shares of its kept ceilings. foreign_share: others had meanwhile."""

    read: float
    arithmetic: float
    foreign_share: float | None


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
    rates: dict[str, LineRate] = {}  # of our kernels by number of rows (rates.py); empty until calibrated
    kernels_at: str = ""  # when these were calibrated last, ISO 8601, and what others had of the processors meanwhile
    kernels_foreign_share: float | None = None
    kernels_pace: float | None = None  # arithmetic just before and after, of the peak
    caches: tuple[CacheLevel, ...] = ()
    copies: tuple[CopyRate, ...] = ()
    flops_per_s_one_thread: dict[str, float] = {}  # only a full measurement has them
    dispatch_s: float = 0.0  # one job handed from Python to the thread team and back
    page_fault_s: float = 0.0  # first touch of a 4 KiB page; 0: not measured
    foreign_share: float | None = None  # of the machine's processors, had by others while this was measured
    since: str = ""  # when the oldest burst that may stand here was measured, ISO 8601

    @property
    def is_disturbed(self) -> bool:
        """Measured while others used the machine: ceilings may be too low."""
        return self.foreign_share is not None and self.foreign_share > BUSY

    @property
    def may_calibrate_better(self) -> bool:
        """Kernels were calibrated while others used the machine or slowed it down, and not just now."""
        is_disturbed = (self.kernels_foreign_share or 0.0) > BUSY or (self.kernels_pace or 1.0) < 1 - BUSY
        return is_disturbed and _age_s(self.kernels_at) > KERNELS_RETRY_S

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


def measure(
    threads: int | None = None, quick: bool = True, probe: Probe | None = None, watch: Watch | None = None
) -> Machine:
    """Measure this machine, about 1 s (quick) or 10 s (every cache level, thread counts in powers of two, copies to
    devices). Best of 5 (quick) or 20 bursts."""
    cores = usable_cores()
    threads = threads or cores
    watch = watch or CpuWatch()
    if probe is None:
        probe = best_probe(threads)
    bursts, caches = (5 if quick else 20), cache_levels()
    reads = []
    for count in sorted({1, threads}) if quick else _thread_counts(threads):
        sets = _memory_sets(caches, cores)
        if not quick:
            sets = sorted({*sets_of(caches, count, cores), *sets})
        elif count != threads:
            sets = sets[-1:]
        for set_bytes in sets:
            level = level_name(caches, set_bytes, count, cores)
            reads.append(_read_rate(probe, set_bytes, count, bursts, level))
    flops = _peaks(probe, threads, bursts)
    copies = [_copy_rate(probe, count, bursts) for count in sorted({1, threads})]
    if not quick:
        copies += [CopyRate(source, target, 1, rate) for source, target, rate in device_copies()]
    now = _now()
    return Machine(
        fingerprint(), threads, tuple(reads), flops,
        statistics.median(probe.barrier_s(threads) for _ in range(bursts)), now, probe.source,
        caches=caches, copies=tuple(copies),
        flops_per_s_one_thread={} if quick else _peaks(probe, 1, bursts),
        dispatch_s=statistics.median(probe.dispatch_s(threads) for _ in range(10 * bursts)),
        page_fault_s=statistics.median(probe.page_fault_s() for _ in range(bursts)),
        foreign_share=watch.foreign_cpu_share(), since=now,
    )  # fmt: skip


def recheck(machine: Machine, probe: Probe | None = None, watch: Watch | None = None) -> Pace:
    """In 0.2 s: whether the clock or the memory is slower now than the kept ceilings say (a cap, a neighbour)."""
    watch, probe = watch or CpuWatch(), probe or best_probe(machine.threads)
    set_bytes = SETS_BYTES[1]
    read = _read_rate(probe, set_bytes, machine.threads, 5, "").bytes_per_s / machine.bandwidth(set_bytes)
    peak = max(probe.flops_per_s("f32", machine.threads) or 0.0 for _ in range(3)) / machine.peak("f32")
    return Pace(read, peak, watch.foreign_cpu_share())


def mean_pace(first: Pace, second: Pace) -> Pace:
    """Of two moments, before and after something."""
    shares = [share for share in (first.foreign_share, second.foreign_share) if share is not None]
    return Pace(
        (first.read + second.read) / 2, (first.arithmetic + second.arithmetic) / 2,
        statistics.fmean(shares) if shares else None,
    )  # fmt: skip


def _thread_counts(threads: int) -> list[int]:
    return sorted({threads, *(1 << power for power in range(threads.bit_length()))})


def _memory_sets(caches: tuple[CacheLevel, ...], cores: int) -> list[int]:
    """SETS_BYTES, the last one larger than what all last-level caches hold, within an eighth of the memory."""
    largest = max(SETS_BYTES[-1], MEMORY_SETS * caches[-1].capacity(cores, cores) if caches else 0)
    return [*SETS_BYTES[:-1], max(SETS_BYTES[-1], min(largest, available_bytes() // 8 >> 20 << 20))]


def _read_rate(probe: Probe, set_bytes: int, threads: int, bursts: int, level: str) -> ReadRate:
    overhead_s = 0.0
    if set_bytes <= IN_CACHE_BYTES:
        bursts *= 20
        overhead_s = min(probe.read_s(LINE_BYTES, threads) for _ in range(bursts))
    probe.read_s(set_bytes, threads)  # first touch
    seconds = sorted(probe.read_s(set_bytes, threads) for _ in range(bursts))
    best_s, median_s = (max(s - overhead_s, s / 10) for s in (seconds[0], statistics.median(seconds)))
    return ReadRate(threads, set_bytes, set_bytes / best_s, set_bytes / median_s, level)


def _copy_rate(probe: Probe, threads: int, bursts: int) -> CopyRate:
    probe.copy_s(COPY_BYTES, threads)  # first touch
    return CopyRate("host", "host", threads, COPY_BYTES / min(probe.copy_s(COPY_BYTES, threads) for _ in range(bursts)))


def _peaks(probe: Probe, threads: int, bursts: int) -> dict[str, float]:
    flops = {}
    for kind in KINDS:
        rates = [probe.flops_per_s(kind, threads) for _ in range(bursts)]
        if None not in rates:
            flops[kind] = max(rate for rate in rates if rate is not None)
    return flops


def load_or_measure(
    threads: int | None = None, path: Path | None = None, again: bool = False,
    measured: Callable[[int], Machine] = measure,
) -> Machine:  # fmt: skip
    """The cached measurement of this fingerprint and thread count, or a new quick one (which is then cached).

    One that was disturbed holds for RETRY_S; then it is measured again and each rate is the best of both.
    again: a full measurement, in place of whatever there was; what was calibrated is gone with it.
    """
    threads = threads or usable_cores()
    path = path or home() / "machine.json"
    if again:
        return store(measure(threads, quick=False), path)
    known = _read(path).get(_key(threads))
    if known is None:
        return store(measured(threads), path)
    if known.is_disturbed and _age_s(known.measured_at) > RETRY_S:
        return store(best_of(known, measured(threads)), path)
    return known


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
    return store(best_of(machine, measure(machine.threads, probe=probe)), path)


def best_of(old: Machine, new: Machine) -> Machine:
    """The faster of both, rate by rate; calmer, if one of them was. Rates older than KEEP_S give way to new ones.

    Calibrated values stay: calibrating again takes longer than being a little off.
    """
    is_stale = _age_s(old.since or old.measured_at) > KEEP_S
    reads = {(read.threads, read.set_bytes): read for read in old.reads}
    copies = {(copy.source, copy.target, copy.threads): copy for copy in old.copies}
    for read in new.reads:
        known = reads.get((read.threads, read.set_bytes), read)
        reads[read.threads, read.set_bytes] = read if is_stale or read.bytes_per_s > known.bytes_per_s else known
    for copy in new.copies:
        key = (copy.source, copy.target, copy.threads)
        kept = copies.get(key, copy)
        copies[key] = copy if is_stale or copy.bytes_per_s > kept.bytes_per_s else kept
    flops = dict(new.flops_per_s) if is_stale else _faster(old.flops_per_s, new.flops_per_s)
    shares = [share for share in (old.foreign_share, new.foreign_share) if share is not None]
    return msgspec.structs.replace(
        old, reads=tuple(reads[key] for key in sorted(reads)), copies=tuple(copies.values()), flops_per_s=flops,
        barrier_s=min(old.barrier_s, new.barrier_s), measured_at=new.measured_at, caches=new.caches,
        dispatch_s=min(old.dispatch_s or new.dispatch_s, new.dispatch_s),
        page_fault_s=min(old.page_fault_s or new.page_fault_s, new.page_fault_s),
        foreign_share=new.foreign_share if is_stale else min(shares, default=None),
        since=new.measured_at if is_stale else old.since or old.measured_at,
    )  # fmt: skip


def _faster(old: dict[str, float], new: dict[str, float]) -> dict[str, float]:
    return {kind: max(rate, old.get(kind, 0.0)) for kind, rate in new.items()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _age_s(moment: str) -> float:
    """Seconds since; 0 for what is not a moment, or has no zone."""
    try:
        return (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


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

"""Process counters: what the system did to this process while it was observed: faults, switches, waits, quota (A1).

Read twice, at the two ends of an observed interval, never per step. Refuses nothing: a number the system does not
tell is None, and rules that need it do not fire.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

PROC = Path("/proc")
# CPU controller of this process's control group: version 2, then 1.
QUOTAS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))


class ProcessCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and seconds over an interval (or, as read, since the process began).

    run_s: of all its threads on a core. wait_s: of all its threads ready to run and not running. throttled_s: the whole
    control group stopped for its quota. swapped_bytes: of this process, at the end. peer_s: CPU of other processes.
    """

    wall_s: float = 0.0
    major_faults: int = 0  # a page had to be read from a disk
    minor_faults: int = 0  # a page was only mapped
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    run_s: float | None = None
    wait_s: float | None = None
    throttled_s: float | None = None
    quota_cores: float | None = None  # None: no quota
    swapped_bytes: int = 0
    peer_s: float | None = None
    threads: int = 1
    cores: int = 1  # that this process may use

    @property
    def wait_share(self) -> float | None:
        """Of the time its threads wanted a core, how much they had none. None: not told."""
        if self.run_s is None or self.wait_s is None:
            return None
        wanted = self.run_s + self.wait_s
        return self.wait_s / wanted if wanted > 0 else 0.0

    def since(self, before: ProcessCounters) -> ProcessCounters:
        """What happened between `before` and this reading."""

        def more(now: float | None, then: float | None) -> float | None:
            return None if now is None or then is None else max(0.0, now - then)

        return msgspec.structs.replace(
            self,
            wall_s=self.wall_s - before.wall_s,
            major_faults=self.major_faults - before.major_faults,
            minor_faults=self.minor_faults - before.minor_faults,
            voluntary_switches=self.voluntary_switches - before.voluntary_switches,
            involuntary_switches=self.involuntary_switches - before.involuntary_switches,
            run_s=more(self.run_s, before.run_s),
            wait_s=more(self.wait_s, before.wait_s),
            throttled_s=more(self.throttled_s, before.throttled_s),
            peer_s=more(self.peer_s, before.peer_s),
        )


def read_counters(proc: Path = PROC, quotas: tuple[Path, ...] = QUOTAS) -> ProcessCounters:
    """This process now, about 0.2 ms."""
    me = proc / "self"
    fields = _text(me / "stat").rpartition(")")[2].split()
    status = _table(_text(me / "status"))
    tasks = _tasks(me / "task")
    own_s = sum(_ticks(field) for field in fields[11:13])
    return ProcessCounters(
        wall_s=time.perf_counter(),
        minor_faults=_integer(fields, 7),
        major_faults=_integer(fields, 9),
        voluntary_switches=sum(task[2] for task in tasks),
        involuntary_switches=sum(task[3] for task in tasks),
        run_s=sum(task[0] for task in tasks) * 1e-9 if any(task[0] for task in tasks) else None,
        wait_s=sum(task[1] for task in tasks) * 1e-9 if any(task[0] for task in tasks) else None,
        throttled_s=_throttled_s(quotas),
        quota_cores=_quota_cores(quotas),
        swapped_bytes=status.get("VmSwap", 0) << 10,
        peer_s=_peer_s(proc, own_s),
        threads=max(1, len(tasks)),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )


def _tasks(folder: Path) -> list[tuple[int, int, int, int]]:
    """(run ns, wait ns, voluntary, involuntary switches) of every thread."""
    found = []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    for name in names:
        waits = _text(folder / name / "schedstat").split()
        switches = _table(_text(folder / name / "status"))
        found.append((
            _integer(waits, 0), _integer(waits, 1), switches.get("voluntary_ctxt_switches", 0),
            switches.get("nonvoluntary_ctxt_switches", 0),
        ))  # fmt: skip
    return found


def _peer_s(proc: Path, own_s: float) -> float | None:
    """CPU seconds of everybody else on this machine, stolen time included."""
    fields = _text(proc / "stat").partition("\n")[0].split()[1:9]
    if len(fields) < 8:
        return None
    busy = [field for place, field in enumerate(fields) if place not in (3, 4)]  # idle, and waiting for a disk
    return sum(_ticks(field) for field in busy) - own_s


def _throttled_s(folders: tuple[Path, ...]) -> float | None:
    for folder in folders:
        told = _table(_text(folder / "cpu.stat"))
        if "throttled_usec" in told:
            return told["throttled_usec"] * 1e-6
        if "throttled_time" in told:
            return told["throttled_time"] * 1e-9
    return None


def _quota_cores(folders: tuple[Path, ...]) -> float | None:
    for folder in folders:
        fields = _text(folder / "cpu.max").split()  # "max 100000" or "150000 100000"
        if not fields:
            fields = [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
        if len(fields) == 2 and all(field.isdecimal() for field in fields) and int(fields[1]):
            return int(fields[0]) / int(fields[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""  # not on this system, or the thread has ended


def _table(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.replace(":", " ").split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _integer(fields: list[str], place: int) -> int:
    return int(fields[place]) if place < len(fields) and fields[place].isdecimal() else 0


def _ticks(field: str) -> float:
    return int(field) / os.sysconf("SC_CLK_TCK")

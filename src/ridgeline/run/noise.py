"""How much of this machine's CPU time others took while we measured. Printed by bench beside its numbers."""

from __future__ import annotations

import os
import time
from pathlib import Path


class CpuWatch:
    """Counts from when it is made. Ours: this process and its descendants; foreign: all else that ran, and steal."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._begin = self._read()

    def foreign_cpu_share(self) -> float | None:
        """Share (0 to 1) of all cores' time since the start that others had; None where /proc does not tell."""
        begin, end = self._begin, self._read()
        if begin is None or end is None or end[0] <= begin[0]:
            return None
        busy, own = end[1] - begin[1], end[2] - begin[2]
        return min(1.0, max(0.0, (busy - own) / (end[0] - begin[0])))

    def _read(self) -> tuple[float, float, float] | None:
        """(all, busy, own) CPU seconds so far."""
        try:
            ticks = os.sysconf("SC_CLK_TCK")
            fields = [int(x) / ticks for x in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
            idle = fields[3] + fields[4]  # idle and waiting for a disk
            return sum(fields), sum(fields) - idle, sum(self._own(pid, ticks) for pid in self._family(os.getpid()))
        except (OSError, ValueError, IndexError):
            return None

    def _family(self, pid: int) -> list[int]:
        found = [pid]
        for task in (self._proc / str(pid) / "task").iterdir():
            try:
                children = (task / "children").read_text().split()
            except OSError:
                continue
            for child in children:
                try:
                    found += self._family(int(child))
                except OSError:
                    continue  # it ended meanwhile
        return found

    def _own(self, pid: int, ticks: int) -> float:
        # The command name (field 2) may hold spaces: read what follows its closing bracket. utime, stime, and theirs
        # of children that were waited for.
        fields = (self._proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return sum(int(x) for x in fields[11:15]) / ticks


def foreign_cpu_share(seconds: float = 0.2) -> float | None:
    """Share of the machine others use right now, watched for `seconds`."""
    watch = CpuWatch()
    time.sleep(seconds)
    return watch.foreign_cpu_share()

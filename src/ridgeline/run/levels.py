"""Cache levels of this machine, named by the kernel, and which of them holds a working set read by some threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MEMORY = "memory"
HALF = 2  # a set of half a level stays in it whatever else is there


class CacheLevel(msgspec.Struct, frozen=True):
    """One level that holds data. nbytes: of one cache; cores: that share one."""

    name: str  # "L2"
    nbytes: int
    cores: int

    def capacity(self, threads: int, cores: int) -> int:
        """Bytes of the caches that `threads` threads use, spread as far as `cores` cores allow."""
        return self.nbytes * max(1, min(threads, cores // self.cores))


def cache_levels(folder: Path = CACHES) -> tuple[CacheLevel, ...]:
    """Smallest first; empty where the kernel does not say (a container without /sys, another system)."""
    levels = []
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            sharing = _count((index / "shared_cpu_list").read_text().strip())
            if kind != "Instruction":
                levels.append(CacheLevel(f"L{int(level)}", _bytes(size), sharing))
        except (OSError, ValueError):
            continue
    return tuple(sorted(levels, key=lambda level: level.nbytes))


def level_name(levels: Sequence[CacheLevel], set_bytes: int, threads: int, cores: int) -> str:
    """The smallest level whose caches hold the whole set; "memory" when none does; "" where levels are unknown."""
    if not levels:
        return ""
    return next((level.name for level in levels if set_bytes <= level.capacity(threads, cores)), MEMORY)


def sets_of(levels: Sequence[CacheLevel], threads: int, cores: int) -> list[int]:
    """A working set for every level: half of what the threads' caches hold, in whole pages."""
    halves = {level.capacity(threads, cores) // HALF // 4096 * 4096 for level in levels}
    return sorted(half for half in halves if half)


def _bytes(text: str) -> int:
    """ "36608K" -> bytes."""
    power = {"K": 10, "M": 20, "G": 30}.get(text[-1:])
    return int(text[:-1]) << power if power else int(text)


def _count(text: str) -> int:
    """Processors of a list like "0-3,8"."""
    spans = [span.partition("-") for span in text.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in spans)

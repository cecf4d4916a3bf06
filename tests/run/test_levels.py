"""Cache levels as the kernel writes them, and which one holds a working set."""

from __future__ import annotations

from pathlib import Path

import pytest

from ridgeline.run.levels import CacheLevel, cache_levels, level_name, sets_of
from ridgeline.run.probe import device_copies

KIB, MIB = 1 << 10, 1 << 20
LEVELS = (CacheLevel("L1", 32 * KIB, 1), CacheLevel("L2", MIB, 1), CacheLevel("L3", 32 * MIB, 4))


def write(folder: Path, index: int, **files: str) -> None:
    (folder / f"index{index}").mkdir()
    for name, text in files.items():
        (folder / f"index{index}" / name).write_text(text + "\n")


def test_levels_are_read_as_the_kernel_writes_them(tmp_path):
    write(tmp_path, 0, level="1", type="Data", size="32K", shared_cpu_list="0")
    write(tmp_path, 1, level="1", type="Instruction", size="32K", shared_cpu_list="0")
    write(tmp_path, 2, level="2", type="Unified", size="1M", shared_cpu_list="0")
    write(tmp_path, 3, level="3", type="Unified", size="32768K", shared_cpu_list="0-1,8-9")
    write(tmp_path, 4, level="odd", type="Unified", size="?", shared_cpu_list="")
    assert cache_levels(tmp_path) == LEVELS
    assert cache_levels(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    ("set_bytes", "threads", "name"),
    [(16 * KIB, 1, "L1"), (48 * KIB, 1, "L2"), (48 * KIB, 2, "L1"), (2 * MIB, 2, "L2"), (2 * MIB, 1, "L3"),
     (48 * MIB, 1, "memory"), (48 * MIB, 8, "L3"), (256 * MIB, 8, "memory")],
)  # fmt: skip
def test_a_set_lies_in_the_smallest_level_that_holds_it(set_bytes, threads, name):
    assert level_name(LEVELS, set_bytes, threads, cores=8) == name


def test_unknown_levels_have_no_name_and_no_sets():
    assert level_name((), MIB, 1, 8) == "" and sets_of((), 1, 8) == []
    assert sets_of(LEVELS, 2, 8) == [32 * KIB, MIB, 32 * MIB]


class FakeTensor:
    def __init__(self, torch: FakeTorch) -> None:
        self.torch = torch

    def copy_(self, source: FakeTensor, non_blocking: bool) -> None:
        self.torch.copied += 1


class FakeTorch:
    """As much of torch as copies need."""

    uint8 = "uint8"

    def __init__(self, devices: int) -> None:
        self.devices, self.copied, self.cuda = devices, 0, self

    def is_available(self) -> bool:
        return self.devices > 0

    def device_count(self) -> int:
        return self.devices

    def synchronize(self, number: int) -> None:
        pass

    def empty(self, size: int, **options: object) -> FakeTensor:
        return FakeTensor(self)


def test_copies_go_both_ways_for_every_device():
    torch = FakeTorch(2)
    found = list(device_copies(torch))
    assert [row[:2] for row in found] == [
        ("host", "cuda:0"), ("cuda:0", "host"), ("host", "cuda:1"), ("cuda:1", "host"),
    ]  # fmt: skip
    assert torch.copied == 20 and all(rate > 0 for *_, rate in found)
    assert list(device_copies(FakeTorch(0))) == []

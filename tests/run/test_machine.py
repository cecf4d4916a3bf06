"""Ceilings from a fake probe: what is kept, what is interpolated, what is measured again, and when."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.run.machine import (
    KEEP_S,
    RETRY_S,
    SETS_BYTES,
    Machine,
    fingerprint,
    load_or_measure,
    measure,
    raise_ceilings,
    recheck,
    store,
    usable_cores,
)  # fmt: skip
from ridgeline.run.noise import CpuWatch


class FakeProbe:
    """Every thread reads `rate` bytes/s, caches twice that; every second burst is half as fast."""

    source = "native"

    def __init__(self, rate: float = 1e10, peak: float = 1e11) -> None:
        self.rate, self.peak, self.bursts = rate, peak, 0

    def read_s(self, set_bytes: int, threads: int) -> float:
        self.bursts += 1
        cached = 2 if set_bytes == SETS_BYTES[0] else 1
        return set_bytes / (self.rate * threads * cached) * (1 + self.bursts % 2)

    def flops_per_s(self, kind: str, threads: int) -> float | None:
        return {"f32": self.peak * threads, "int8": 4 * self.peak * threads, "bf16": None}[kind]

    def barrier_s(self, threads: int) -> float:
        return 1e-6

    def dispatch_s(self, threads: int) -> float:
        return 2e-6

    def copy_s(self, nbytes: int, threads: int) -> float:
        return nbytes / (self.rate / 2 * threads)

    def page_fault_s(self) -> float:
        return 3e-7


class FakeWatch:
    """Others had this share of the machine."""

    def __init__(self, share: float | None) -> None:
        self.share = share

    def foreign_cpu_share(self) -> float | None:
        return self.share


@pytest.fixture
def machine() -> Machine:
    return measure(2, probe=FakeProbe(), watch=FakeWatch(0.02))


def ago(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)).isoformat()


def test_a_ceiling_is_the_best_burst_and_a_missing_kind_is_absent(machine):
    assert machine.read_bytes_per_s == pytest.approx(2e10)
    assert machine.bandwidth(threads=1) == pytest.approx(1e10)
    assert machine.reads[0].median_bytes_per_s <= machine.reads[0].bytes_per_s
    assert machine.flops_per_s == {"f32": 2e11, "int8": 8e11}
    assert machine.peak("bf16") == machine.peak("f32")
    assert machine.ridge() == pytest.approx(10) and machine.ridge("int8") == pytest.approx(40)


def test_each_roof_says_which_level_it_is(machine):
    cache, middle, memory = SETS_BYTES
    assert machine.bandwidth(1) == machine.bandwidth(cache) == pytest.approx(4e10)
    assert machine.bandwidth(memory * 10) == machine.bandwidth() == pytest.approx(2e10)
    assert machine.bandwidth(memory) < machine.bandwidth(int((cache * middle) ** 0.5)) < machine.bandwidth(cache)
    with pytest.raises(UserError, match="7 threads"):
        machine.bandwidth(threads=7)


def test_the_roof_does_not_hide_behind_a_slow_kernel(machine):
    slow = msgspec.structs.replace(machine, efficiency={"linear int8": 0.5})
    assert slow.attainable("linear", "int8") == slow.peak("int8") / 2
    assert slow.attainable("attend", "f32") == slow.peak("f32")
    assert slow.ridge("int8") == machine.ridge("int8")


def test_what_was_measured_is_kept_by_fingerprint_and_threads(tmp_path, machine):
    path = tmp_path / "deep" / "machine.json"
    other = msgspec.structs.replace(machine, threads=1, barrier_s=5.0)
    assert store(machine, path) == machine and store(other, path) == other
    assert load_or_measure(2, path) == machine
    assert load_or_measure(1, path) == other
    path.write_bytes(path.read_bytes()[:-40])
    store(machine, path)  # a broken cache is a missing one
    assert load_or_measure(2, path) == machine


def test_raising_keeps_the_faster_of_both_and_what_was_calibrated(tmp_path, machine):
    calibrated = msgspec.structs.replace(machine, efficiency={"linear f32": 0.5}, host_s=1e-4)
    raised = raise_ceilings(calibrated, FakeProbe(rate=3e10, peak=1e10), tmp_path / "machine.json")
    assert raised.read_bytes_per_s == pytest.approx(6e10)
    assert raised.flops_per_s == machine.flops_per_s
    assert (raised.efficiency, raised.host_s) == (calibrated.efficiency, calibrated.host_s)
    assert load_or_measure(2, tmp_path / "machine.json") == raised


def test_what_was_measured_among_others_is_not_kept_for_good(tmp_path):
    path = tmp_path / "machine.json"
    measured = []

    def measuring(threads: int) -> Machine:
        """Each measurement is faster than the last; the third one is calm."""
        measured.append(threads)
        share = 0.4 if len(measured) < 3 else 0.05
        return measure(threads, probe=FakeProbe(rate=len(measured) * 1e10), watch=FakeWatch(share))

    first = load_or_measure(2, path, measured=measuring)
    assert first.is_disturbed and first.foreign_share == 0.4
    assert load_or_measure(2, path, measured=measuring) == first and len(measured) == 1  # holds for a minute
    store(msgspec.structs.replace(first, measured_at=ago(RETRY_S + 1), efficiency={"linear f32": 0.5}), path)
    second = load_or_measure(2, path, measured=measuring)
    assert second.is_disturbed and second.read_bytes_per_s == pytest.approx(4e10)
    assert second.efficiency == {"linear f32": 0.5}
    store(msgspec.structs.replace(second, measured_at=ago(RETRY_S + 1)), path)
    third = load_or_measure(2, path, measured=measuring)
    assert not third.is_disturbed and third.foreign_share == 0.05
    store(msgspec.structs.replace(third, measured_at=ago(RETRY_S + 1)), path)
    load_or_measure(2, path, measured=measuring)
    assert len(measured) == 3  # a calm one is kept


def test_rates_of_another_day_give_way(tmp_path, machine):
    path = tmp_path / "machine.json"
    slower = FakeProbe(rate=1e9, peak=1e10)
    kept = raise_ceilings(machine, slower, path)
    assert kept.read_bytes_per_s == machine.read_bytes_per_s and kept.since == machine.since
    old = msgspec.structs.replace(machine, since=ago(KEEP_S + 1), measured_at=ago(KEEP_S + 1))
    fresh = raise_ceilings(old, slower, path)
    assert fresh.read_bytes_per_s == pytest.approx(2e9) and fresh.peak() == pytest.approx(2e10)
    assert [copy.bytes_per_s for copy in fresh.copies] == pytest.approx([5e8, 1e9])


def test_everything_that_is_measured_has_a_number(machine):
    assert (machine.barrier_s, machine.dispatch_s, machine.page_fault_s) == (1e-6, 2e-6, 3e-7)
    assert [(copy.threads, copy.bytes_per_s) for copy in machine.copies] == [(1, 5e9), (2, 1e10)]
    whole = measure(3, quick=False, probe=FakeProbe(), watch=FakeWatch(None))
    assert {read.threads for read in whole.reads} == {1, 2, 3}
    assert whole.flops_per_s_one_thread == {"f32": 1e11, "int8": 4e11}
    assert not whole.is_disturbed
    assert len(whole.reads) >= 9 and all(read.bytes_per_s > 0 for read in whole.reads)


def test_a_slower_clock_is_seen_within_a_burst(machine):
    now = recheck(machine, FakeProbe(peak=5e10), FakeWatch(0.0))
    assert (now.read, now.arithmetic) == (pytest.approx(1.0), pytest.approx(0.5))


def test_this_machine_has_a_name_and_cores():
    mark = fingerprint()
    assert mark.cpu and mark.memory_bytes > 0 and mark.cores == usable_cores() >= 1
    assert mark == fingerprint()


def test_the_native_probe_measures_something_sane():
    """Not a speed test: any x86-64 of this century reads between 0.1 GB/s and 10 TB/s."""
    machine = measure(1)
    assert 1e8 < machine.read_bytes_per_s < 1e13
    assert 1e8 < machine.peak("f32") < 1e14


def test_foreign_time_is_a_share():
    share = CpuWatch().foreign_cpu_share()
    watch = CpuWatch()
    sum(i * i for i in range(2_000_000))
    share = watch.foreign_cpu_share()
    assert share is None or 0 <= share <= 1


def test_no_proc_no_answer(tmp_path):
    assert CpuWatch(tmp_path).foreign_cpu_share() is None

"""Process counters: read from a made-up /proc exactly, and only at the ends of an interval."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ridgeline.perf.account import Account
from ridgeline.perf.process_counters import ProcessCounters, read_counters


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    stat = "7 (a (strange) name) R 1 1 1 0 -1 0 11 0 3 0 200 100 0 0 20 0 2 0 1 1 1"
    switches = "voluntary_ctxt_switches:\t4\nnonvoluntary_ctxt_switches:\t5\n"
    return write(
        tmp_path / "proc",
        {
            "stat": "cpu  500 0 100 900 50 0 0 7 0 0\ncpu0 1 1 1\n",
            "self/stat": stat,
            "self/status": "VmSwap:\t 2 kB\n",
            "self/task/7/schedstat": "1000000000 500000000 9\n",
            "self/task/7/status": switches,
            "self/task/8/schedstat": "2000000000 250000000 9\n",
            "self/task/8/status": switches,
        },
    )


def test_reads_what_the_system_tells(proc, tmp_path):
    quota = write(tmp_path / "quota", {"cpu.stat": "throttled_usec 1500000\n", "cpu.max": "150000 100000\n"})
    read = read_counters(proc, (quota,))
    assert (read.minor_faults, read.major_faults, read.swapped_bytes) == (11, 3, 2048)
    assert (read.run_s, read.wait_s, read.threads) == (pytest.approx(3.0), pytest.approx(0.75), 2)
    assert (read.voluntary_switches, read.involuntary_switches) == (8, 10)
    assert (read.throttled_s, read.quota_cores) == (pytest.approx(1.5), pytest.approx(1.5))
    assert read.wait_share == pytest.approx(0.2)
    assert read.peer_s == pytest.approx(6.07 - 3.0)  # of everybody, less ours: a hundred ticks are a second


def test_the_older_control_groups_count_too(proc, tmp_path):
    files = {"cpu.stat": "throttled_time 2000000000\n", "cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "100000\n"}
    read = read_counters(proc, (tmp_path / "nowhere", write(tmp_path / "old", files)))
    assert (read.throttled_s, read.quota_cores) == (pytest.approx(2.0), pytest.approx(0.5))


def test_a_silent_system_gives_no_numbers_and_no_error(tmp_path):
    read = read_counters(tmp_path, ())
    assert (read.run_s, read.wait_s, read.throttled_s, read.quota_cores, read.peer_s) == (None,) * 5
    assert read.wait_share is None
    assert read.since(read).run_s is None


def test_an_interval_is_the_difference():
    before = ProcessCounters(wall_s=1.0, major_faults=2, run_s=1.0, wait_s=0.5, involuntary_switches=1, peer_s=3.0)
    after = ProcessCounters(wall_s=3.0, major_faults=5, run_s=2.0, wait_s=1.5, involuntary_switches=4, peer_s=3.5)
    told = after.since(before)
    assert (told.wall_s, told.major_faults, told.involuntary_switches) == (2.0, 3, 3)
    assert (told.run_s, told.wait_s, told.wait_share, told.peer_s) == (1.0, 1.0, 0.5, 0.5)


def test_the_account_reads_them_at_its_ends():
    account = Account()
    thread = threading.Thread(target=time.sleep, args=(0.01,))
    thread.start()
    thread.join()
    process = account.table().process
    assert process is not None and process.wall_s >= 0.01 and process.cores >= 1

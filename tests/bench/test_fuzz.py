"""A few hundred hostile files through the fuzzer; the 100,000 are `python bench/fuzz.py --count 100000`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_hostile_files_end_in_a_sentence() -> None:
    command = [sys.executable, str(BENCH / "fuzz.py"), "--count", "600", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = json.loads(done.stdout.splitlines()[-1])["kinds"]
    assert {name: row["cases"] for name, row in kinds.items()} == dict.fromkeys(kinds, 100) and len(kinds) == 6
    assert all(row["wrong"] == 0 and row["refused"] > 20 and row["ok"] > 5 for row in kinds.values())

"""From nothing to the first token, and what stays in memory (issue 4): fresh processes, warm file cache.

python bench/start.py MODEL [--repeats 5]      the last line is one JSON document
Times of one process: interpreter and imports, load, first token of a 16-token prompt. Memory after 32 tokens, as the
kernel accounts it: RssAnon (ours alone) and RssFile (mapped files), beside the file's size and the KV pool.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from ridgeline.engine.config import EngineConfig
from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch

ALLOWED_EXTRA = 120 << 20


def child(model: str, kv_bytes: int | None) -> dict[str, float]:
    """In a fresh process: one engine, one prompt."""
    import time

    began = time.perf_counter()
    from ridgeline.engine.build import build
    from ridgeline.state.request import Request

    imported = time.perf_counter()
    engine = build(EngineConfig(model, context=512, kv_bytes=kv_bytes))
    loaded = time.perf_counter()
    engine.add(Request("start", tuple(range(100, 116)), 32, ignore_stop=True))
    while not any(event.tokens for event in engine.step()):
        pass
    first = time.perf_counter()
    while engine.has_work:
        engine.step()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    kilobytes = {name: int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "VmHWM")}
    found = {
        "import_s": imported - began, "load_s": loaded - imported, "first_token_s": first - loaded,
        "load_and_first_token_s": first - imported, "file_bytes": engine.facts.file_bytes,
        "kv_pool_bytes": engine.facts.kv_bytes, "resident_weight_bytes": engine.facts.resident_weight_bytes,
    } | kilobytes  # fmt: skip
    engine.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kv-bytes", type=int, default=64 << 20)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(asked.model, asked.kv_bytes)))
        return 0
    watch = CpuWatch()
    command = [sys.executable, __file__, asked.model, "--kv-bytes", str(asked.kv_bytes), "--child"]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(asked.repeats + 1)
    ][1:]  # the first one fills the file cache
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    for name, value in middle.items():
        print(f"{name:>24} {value:.3f} s" if name.endswith("_s") else f"{name:>24} {value / 2**20:.1f} MiB")
    limit = middle["file_bytes"] + ALLOWED_EXTRA
    used = middle["RssAnon"]
    print(f"RssAnon {used / 2**20:.1f} MiB, KV pool included; file + 120 MiB is {limit / 2**20:.1f} MiB")
    document = {"bench": "start", "model": asked.model, "median": middle, "runs": runs}
    share = watch.foreign_cpu_share()
    print(json.dumps(document | {"foreign_cpu_share": share, "cpu": fingerprint().cpu}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

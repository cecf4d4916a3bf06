"""The measured ceilings against programs that share no code with us (issue 5): read bandwidth and peaks within 10 %.

python bench/ceilings.py [--rounds 12] [--megabytes 16 80 256]     needs g++ and PyTorch (oneDNN)
In every round, one after the other: our probes (run/probe.py), stream.cpp (OpenMP, -O3 -march=native), matrix products
of oneDNN (f32 inner product, int8 quantised linear) and MKL (f32), beside our peak once more. A ceiling is the fastest
burst seen. Prints a table; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host_path import show

from ridgeline.run.machine import KINDS, fingerprint, usable_cores
from ridgeline.run.noise import CpuWatch
from ridgeline.run.probe import NativeProbe

BURSTS = 10
PRODUCT_S = 0.1
SQUARES = (384, 768, 1536)  # rows and columns of a product
REST_S = 0.3  # an OpenMP team spins for a while after its work
WITHIN = 0.10

Products = dict[tuple[str, str], Callable[[], object]]  # by kind of number and library


def compile_stream(folder: str) -> str:
    program = str(Path(folder) / "stream")
    source = str(Path(__file__).with_name("stream.cpp"))
    subprocess.run(["g++", "-O3", "-march=native", "-ffast-math", "-fopenmp", source, "-o", program], check=True)
    return program


def stream(program: str, *asked: object) -> list[float]:
    words = subprocess.run([program, *map(str, asked)], capture_output=True, text=True, check=True).stdout.split()
    return [float(word) for word in words]


def products(size: int) -> Products:
    """Square matrix products by kind of number and library."""
    import torch
    from torch.utils import mkldnn

    torch.set_grad_enabled(False)
    plain = torch.randn(size, size)
    layer = mkldnn.to_mkldnn(torch.nn.Linear(size, size, bias=False).eval())
    row = plain.to_mkldnn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated; there is no other way to oneDNN's int8 here
        torch.backends.quantized.engine = "onednn"
        weight = torch.quantize_per_tensor(plain, 0.03, 0, torch.qint8)
        given = torch.quantize_per_tensor(plain, 0.03, 128, torch.quint8)
        packed = torch.ops.quantized.linear_prepack(weight, None)
    return {
        ("f32", "MKL"): lambda: plain @ plain,
        ("f32", "oneDNN"): lambda: layer(row),
        ("int8", "oneDNN"): lambda: torch.ops.quantized.linear(given, packed, 1.0, 128),
    }


def rate(work: Callable[[], object], size: int) -> float:
    """Operations a second of the fastest burst; at least BURSTS, and for at least PRODUCT_S."""
    work()
    seconds: list[float] = []
    while len(seconds) < BURSTS or sum(seconds) < PRODUCT_S:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(seconds)


def measure(rounds: int, sizes: list[int], program: str, threads: int) -> dict[str, dict[str, list[float]]]:
    """{what: {program: a value a round}}"""
    found: dict[str, dict[str, list[float]]] = {}

    def note(what: str, who: str, value: float) -> None:
        found.setdefault(what, {}).setdefault(who, []).append(value)

    probe = NativeProbe(threads)
    counts = sorted({1, threads})
    matrices = {size: products(size) for size in SQUARES}
    for _ in range(rounds):
        for megabytes in sizes:
            for count in counts:
                what, nbytes = f"read {megabytes} MB, threads: {count}", megabytes << 20
                note(what, "ours", nbytes / min(probe.read_s(nbytes, count) for _ in range(BURSTS)))
                note(what, "stream.cpp", stream(program, "memory", megabytes, BURSTS, count)[0])
        copied = 128 << 20
        note("copy 128 MB", "ours", 2 * copied / min(probe.copy_s(copied, threads) for _ in range(BURSTS)))
        note("copy 128 MB", "stream.cpp", stream(program, "memory", 3 * copied >> 20, BURSTS, threads)[1])
        for count in counts:
            note_peaks(note, probe, matrices, stream(program, "peak", BURSTS, count), count)
    return found


def note_peaks(
    note: Callable[[str, str, float], None], probe: NativeProbe, matrices: dict[int, Products], chains: list[float],
    count: int,
) -> None:  # fmt: skip
    """Ours; an independent chain of instructions; products, which also load and store."""
    import torch

    for kind in KINDS:
        rates = [one for _ in range(BURSTS) if (one := probe.flops_per_s(kind, count)) is not None]
        if rates:
            note(f"{kind} peak, threads: {count}", "ours", max(rates))
    for kind, value in zip(("f32", "int8"), chains, strict=True):
        note(f"{kind} peak, threads: {count}", "stream.cpp", value)
    torch.set_num_threads(count)
    for size, works in matrices.items():
        for (kind, name), work in works.items():
            note(f"{kind} product, threads: {count}", f"{name} {size}", rate(work, size))
    time.sleep(REST_S)
    for kind in {kind for works in matrices.values() for kind, _ in works}:
        note(
            f"{kind} product, threads: {count}", "ours", max(probe.flops_per_s(kind, count) or 0 for _ in range(BURSTS))
        )


def compared(found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Best against best; and the median over rounds of the ratio of neighbours in time."""
    rows = []
    for what, sides in found.items():
        ours = sides.pop("ours")
        best = max(sides, key=lambda name: max(sides[name]), default="")
        if not best:
            rows.append(
                {"what": what, "ours G/s": max(ours) / 1e9, "other G/s": "", "other": "nothing to compare with"}
            )
            continue
        ratio = max(ours) / max(sides[best])
        neighbours = statistics.median(one / other for one, other in zip(ours, sides[best], strict=True))
        rows.append({
            "what": what, "ours G/s": max(ours) / 1e9, "other G/s": max(sides[best]) / 1e9, "other": best,
            "ours / other %": 100 * ratio, "median of rounds %": 100 * neighbours,
            "within 10 %": "yes" if abs(ratio - 1) <= WITHIN else "no",
        })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[16, 80, 256])
    asked = parser.parse_args()
    cpu, threads = CpuWatch(), usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.rounds, asked.megabytes, compile_stream(folder), threads)
    raw = {what: dict(sides) for what, sides in found.items()}
    rows = compared(found)
    show(f"fastest of {asked.rounds} rounds of {BURSTS} bursts, interleaved", rows)
    share = cpu.foreign_cpu_share()
    print(f"\nforeign CPU share {share}")
    print(json.dumps({
        "bench": "ceilings", "date": str(datetime.date.today()), "argv": sys.argv[1:], "machine": fingerprint().cpu,
        "rows": rows, "rounds": raw, "foreign_cpu_share": share,
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Products of native linears by format and batch: GOP/s beside the instruction peak, GB/s of weights beside the read
bandwidth, both measured in the same run.   python bench/linear.py [--formats q4_1,q8_0] [--batch 1,6,256]

One tape of as many matrices as fill --set bytes, so weights come from memory as in a model; smallest of --seconds of
repetitions, since other work only makes them longer. --kept: share of groups with outliers, whose low plane is
multiplied too. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.formats.format import FORMATS
from ridgeline.kernels import native, packing
from ridgeline.kit.errors import UserError
from ridgeline.run.arena import quantised_row_bytes
from ridgeline.run.machine import fingerprint, measure
from ridgeline.run.noise import CpuWatch

ALL = "f32,bf16,fp8,q8_0,int8,q4_0,q4_1,int4:group=32,q5_0,q4_k,q6_k"
BATCHES = "1,2,4,6,8,12,24,64,256"
OUTLIER = 8.0
ROW = "{:<14} {:>4} {:>9} {:>9} {:>7} {:>8} {:>7} {:>8}"


def weight_of(name: str, rows: int, columns: int) -> packing.PackedWeight:
    """Packed random numbers; of formats that can only be read, random bits."""
    format = FORMATS.get(name)
    rng = np.random.default_rng(0)
    try:
        data = format.pack(rng.standard_normal((rows, columns), np.float32))
    except UserError:
        data = rng.integers(0, 256, format.nbytes(rows, columns), np.uint8)
    return packing.pack(data, format, rows, columns)


def activations(batch: int, columns: int, kept: float) -> npt.NDArray[np.float32]:
    """Rows whose first groups have an outlier each: the same columns in every row, as behind a norm."""
    x = np.random.default_rng(1).standard_normal((batch, columns), np.float32)
    x[:, : round(kept * columns / 32) * 32 : 32] = 60.0
    return x


class Products:
    """`batch` rows times a set of matrices, one instruction each."""

    def __init__(self, weight: packing.PackedWeight, x: npt.NDArray[np.float32], set_bytes: int) -> None:
        batch, columns = x.shape
        self.count = max(4, min(256, -(-set_bytes // weight.nbytes)))
        self.sets = [weight.data] + [native.aligned(weight.nbytes) for _ in range(self.count - 1)]
        for copy in self.sets[1:]:
            copy[:] = weight.data
        quant = -(-x.nbytes // 64) * 64
        out = quant + batch * quantised_row_bytes(columns)
        self.arena = native.aligned(out + batch * weight.rows * 4)
        self.arena[: x.nbytes] = x.reshape(-1).view(np.uint8)
        absent: dict[str, Any] = {"in": 0, "in2": -1, "in_quant": -1, "out_quant": -1, "parts": 1}
        copied = absent | {"out": 0, "out_quant": quant, "width_in": columns, "width_out": columns, "outlier": OUTLIER}
        tape = [native.RlInstr(op=native.RL_ADD, **copied)]
        product = absent | {"out": out, "in_quant": quant, "width_in": columns, "width_out": weight.rows}
        for line, data in enumerate(self.sets, 1):
            instruction = native.RlInstr(op=native.RL_LINEAR, line=line, **product)
            slot = instruction.weight[0]
            slot.data, slot.bytes, slot.format = data.ctypes.data, weight.nbytes, weight.format.native
            slot.rows, slot.columns = weight.rows, weight.columns
            tape.append(instruction)
        self.tape, self.scratch = native.Tape(tape), native.aligned(64)
        self.times = np.zeros(self.count + 1, np.int64)
        self.batch = native.RlBatch(tokens=batch, sequences=1, line_ns=self.times.ctypes.data)

    def seconds(self, team: native.Team, budget_s: float) -> float:
        """Of one product: the smallest mean over a pass of the set."""
        best, end = float("inf"), time.perf_counter() + budget_s
        while True:
            native.execute(team, self.tape, self.arena, self.scratch, None, self.batch)
            best = min(best, float(self.times[1:].mean()) * 1e-9)
            if time.perf_counter() > end:
                return best


def table(asked: argparse.Namespace) -> list[dict[str, Any]]:
    rows, width = (int(part) for part in asked.shape.split("x"))
    rows_found: list[dict[str, Any]] = []
    with native.Team(asked.threads) as team:
        for name in asked.formats.split(","):
            block = min(256, FORMATS.get(name).group)
            columns = -(-width // block) * block  # 576 -> 768 for blocks of 256
            weight = weight_of(name, rows, columns)
            kind = "int8" if packing.reads_integers(weight.format) else "f32"
            for batch in (int(part) for part in asked.batch.split(",")):
                machine = measure(asked.threads)  # beside every figure: the machine is rarely ours alone
                made = Products(weight, activations(batch, columns, asked.kept), asked.set << 20)
                seconds = made.seconds(team, asked.seconds)
                rate, read = 2 * batch * rows * columns / seconds, weight.nbytes / seconds
                share, of_read = rate / machine.peak(kind), read / machine.read_bytes_per_s
                print(ROW.format(
                    name, batch, f"{seconds * 1e6:.1f}", f"{rate / 1e9:.0f}", f"{share:.0%}", f"{read / 1e9:.1f}",
                    f"{of_read:.0%}", f"{machine.peak(kind) / 1e9:.0f}",
                ), flush=True)  # fmt: skip
                rows_found.append({
                    "format": name, "batch": batch, "seconds": seconds, "ops_per_s": rate, "share_of_peak": share,
                    "bytes_per_s": read, "share_of_read": of_read,
                })  # fmt: skip
    return rows_found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=ALL)
    parser.add_argument("--batch", default=BATCHES)
    parser.add_argument("--shape", default="1536x576", help="rows x columns of a matrix")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kept", type=float, default=0.0)
    parser.add_argument("--isa")
    parser.add_argument("--set", type=int, default=96, help="MiB of weights")
    parser.add_argument("--seconds", type=float, default=0.3)
    asked = parser.parse_args()
    if asked.isa:
        native.set_isa(asked.isa)
    watch = CpuWatch()
    print(ROW.format("format", "rows", "us", "GOP/s", "peak", "GB/s", "read", "of GOP/s"))
    rows = table(asked)
    share = watch.foreign_cpu_share()
    print(f"{native.isa()}, {asked.threads} threads, {asked.shape}; others used {(share or 0):.1%} of the machine")
    document = {"bench": "linear", "asked": vars(asked), "rows": rows, "foreign_cpu_share": share}
    print(json.dumps(document | {"cpu": fingerprint().cpu, "isa": native.isa()}))


if __name__ == "__main__":
    main()

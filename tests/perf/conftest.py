"""A tiny Program of descriptors and a machine of round numbers: every expected value can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ridgeline.ops.program import Program, Recorder
from ridgeline.run.machine import Fingerprint, Machine, ReadRate


@dataclass(frozen=True)
class PlainFormat:
    name: str = "f32"
    group: int = 1
    native: int = 0  # RL_F32

    def nbytes(self, rows: int, columns: int) -> int:
        return 4 * rows * columns


@dataclass(frozen=True)
class Described:
    """A weight without data."""

    name: str
    rows: int
    columns: int
    format: PlainFormat = PlainFormat()
    data: None = None

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(self.rows, self.columns)


class PlainStorage:
    name = "f32"

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        return 8 * kv_heads * head_dim


def record(layers: int = 2, window: int = 0) -> Program:
    """Layers of norm, qkv, attend (2 heads, 1 kv head, dim 4), out, add; then a head of 32 tokens."""
    recorder = Recorder("tiny", PlainStorage())
    x = recorder.embed(Described("embed", 32, 8))
    for layer in range(layers):
        recorder.layer(layer)
        h = recorder.norm(x, Described("norm", 1, 8), 1e-5, "attend_norm")
        qkv = recorder.linear(h, (Described("qkv", 16, 8),), "qkv")
        a = recorder.attend(qkv, 2, 1, 4, 0.5, window if layer else 0)
        o = recorder.linear(a, (Described("out", 8, 8),), "out")
        x = recorder.add(x, o, "attend_add")
        recorder.cut()
    recorder.sample(recorder.head(recorder.gather(x), Described("head", 32, 8)))
    return recorder.finish()


def round_machine(bytes_per_s: float = 1e6, flops_per_s: float = 1e8) -> Machine:
    fingerprint = Fingerprint("a cpu", 2, ("plain", "avx2"), 1 << 30, "kernel", "library")
    reads = (ReadRate(2, 1 << 28, bytes_per_s, bytes_per_s),)
    return Machine(fingerprint, 2, reads, {"f32": flops_per_s, "int8": 4 * flops_per_s}, 0.0, "2026-11-21T00:00:00")


@pytest.fixture
def program() -> Program:
    return record()


@pytest.fixture
def machine() -> Machine:
    return round_machine()

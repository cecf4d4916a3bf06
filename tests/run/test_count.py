"""Counted FLOPs and bytes equal closed forms written here by hand (A4, A8, A9): GQA, bias, heads, every format."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from ridgeline.formats.format import FORMATS
from ridgeline.formats.weight import StoredWeight
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.ops.batch import BatchShape, count_pairs
from ridgeline.ops.kv import Reach
from ridgeline.ops.program import Program, Recorder
from ridgeline.run.count import by_part, fused_bytes_saved, parameters, total, weight_bytes

# Bytes of 32 values: GGUF block sizes and plain element sizes, from the file formats' own specifications.
BYTES_OF_32 = {"f32": 128, "bf16": 64, "f16": 64, "q8_0": 34, "q4_1": 20, "q4_0": 18}


@dataclass(frozen=True)
class Shape:
    layers: int = 3
    width: int = 96
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 160
    vocabulary: int = 320
    tied: bool = True
    bias: bool = False


class NoRope:
    dim, interleaved = 32, False


def matrix(name: str, rows: int, columns: int, format_name: str) -> StoredWeight:
    return StoredWeight(name, rows, columns, FORMATS.get(format_name), None)


def record(shape: Shape, format_name: str, storage: str = "bf16", window: int = 0) -> Program:
    """A llama-shaped Program on descriptors, written out here so that the test does not lean on models/."""
    r = Recorder("closed form", STORAGES.get(storage))
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    table = matrix("embed", shape.vocabulary, shape.width, format_name)
    x = r.embed(table)
    for layer in range(shape.layers):
        r.layer(layer)
        gain = matrix("norm", 1, shape.width, "f32")
        biases = tuple(matrix("bias", 1, rows, "f32") for rows in (q, kv, kv)) if shape.bias else None
        parts = tuple(matrix("part", rows, shape.width, format_name) for rows in (q, kv, kv))
        qkv = r.linear(r.norm(x, gain, 1e-5, "attend_norm"), parts, "qkv", biases)
        qkv = r.rope(qkv, shape.heads, shape.kv_heads, shape.head_dim, NoRope())
        o = r.attend(qkv, shape.heads, shape.kv_heads, shape.head_dim, 1.0, window)
        x = r.add(x, r.linear(o, (matrix("o", shape.width, q, format_name),), "o"), "attend_add")
        h = r.norm(x, matrix("norm", 1, shape.width, "f32"), 1e-5, "mlp_norm")
        gate_up = (
            matrix("gate", shape.ffn, shape.width, format_name),
            matrix("up", shape.ffn, shape.width, format_name),
        )
        a = r.activation(r.linear(h, gate_up, "gate_up"), "silu")
        x = r.add(x, r.linear(a, (matrix("down", shape.width, shape.ffn, format_name),), "down"), "mlp_add")
        r.cut()
    x = r.norm(r.gather(x), matrix("norm", 1, shape.width, "f32"), 1e-5, "final_norm")
    head = table if shape.tied else matrix("head", shape.vocabulary, shape.width, format_name)
    r.sample(r.head(x, head))
    return r.finish()


def stored(elements: int, format_name: str) -> int:
    return elements * BYTES_OF_32[format_name] // 32


@pytest.mark.parametrize("format_name", BYTES_OF_32)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_and_weight_bytes(format_name: str, tied: bool, bias: bool) -> None:
    shape = Shape(tied=tied, bias=bias)
    program = record(shape, format_name)
    d, f, h, k, n = shape.width, shape.ffn, shape.head_dim, shape.kv_heads, shape.heads
    matrices = shape.layers * (d * n * h + 2 * d * k * h + n * h * d + 3 * d * f)
    tables = shape.vocabulary * d * (1 if tied else 2)
    vectors = (2 * shape.layers + 1) * d + (shape.layers * (n + 2 * k) * h if bias else 0)
    assert parameters(program) == matrices + tables + vectors
    assert weight_bytes(program) == stored(matrices + tables, format_name) + 4 * vectors


@pytest.mark.parametrize("format_name", BYTES_OF_32)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_cost(format_name: str, bias: bool) -> None:
    """2 FLOPs a weight and token; every weight read once a step whatever the batch (D10: no padded row)."""
    shape = Shape(bias=bias)
    parts = by_part(record(shape, format_name), BatchShape.of([(5, 7), (40, 1), (0, 3)], logit_rows=2))
    tokens, d, f, q, kv = 11, shape.width, shape.ffn, 192, 64
    assert parts["qkv"].flops == shape.layers * tokens * ((q + 2 * kv) * (2 * d + (1 if bias else 0)))
    assert parts["gate_up"].flops == shape.layers * tokens * 2 * 2 * d * f
    assert parts["down"].flops == parts["gate_up"].flops // 2
    bias_bytes = 4 * (q + 2 * kv) if bias else 0
    assert parts["qkv"].weight_bytes == shape.layers * (stored((q + 2 * kv) * d, format_name) + bias_bytes)
    assert parts["head"].flops == 2 * 2 * shape.vocabulary * d  # two logit rows
    assert parts["head"].weight_bytes == stored(shape.vocabulary * d, format_name)


@pytest.mark.parametrize(("storage", "element"), [("f32", 4), ("bf16", 2)])
def test_attention_cost(storage: str, element: int) -> None:
    """Prefill n: n(n+1)/2 pairs; decode at context c: c+1 pairs; KV by kv heads, not by heads (GQA)."""
    shape = Shape()
    program = record(shape, "bf16", storage)
    per_token = 2 * shape.kv_heads * shape.head_dim * element
    fill = by_part(program, BatchShape.of([(0, 64)], 1))["attend"]
    assert fill.flops == shape.layers * 4 * (64 * 65 // 2) * shape.heads * shape.head_dim
    assert fill.kv_bytes == shape.layers * per_token * (64 + 64)  # each read once, each written once
    step = by_part(program, BatchShape.of([(99, 1)], 1))["attend"]
    assert step.flops == shape.layers * 4 * 100 * shape.heads * shape.head_dim
    assert step.kv_bytes == shape.layers * per_token * (100 + 1)


def test_attention_flops_grow_with_the_square() -> None:
    """16k against 1k: 256 times the pairs, exactly for full pairs n² and to 0.1 % for the causal n(n+1)/2 (A9)."""
    assert pytest.approx(256, rel=1e-3) == (16384 * 16385) / (1024 * 1025)
    assert count_pairs(0, 16384)[0] * 2 - 16384 == 256 * (count_pairs(0, 1024)[0] * 2 - 1024)


def test_chunks_add_up_to_the_whole() -> None:
    """Cutting a prompt into chunks changes no attention FLOP; window and sinks or not."""
    for reach in (Reach(), Reach(1), Reach(5), Reach(16, 4), Reach(5, 40), Reach(100)):
        whole = count_pairs(0, 61, reach)[0]
        cuts = [0, 7, 16, 17, 48, 61]
        assert sum(count_pairs(a, b - a, reach)[0] for a, b in itertools.pairwise(cuts)) == whole
        seen = [{q for q in range(p + 1) if q > p - (reach.window or 99) or q < reach.sinks} for p in range(61)]
        assert whole == sum(map(len, seen))
        assert [count_pairs(p, 1, reach) for p in range(61)] == [(len(keys), len(keys)) for keys in seen]


def test_packed_layers_read_what_is_kept() -> None:
    """Budget 4 + 20 + 24, packed at multiples of 64 (C10)."""
    reach = Reach(24, 4, 20)
    assert [count_pairs(before, 1, reach)[1] for before in (0, 47, 63, 64, 127, 128)] == [1, 48, 64, 49, 112, 49]
    assert count_pairs(64, 10, reach) == count_pairs(48, 10)


def test_windowed_layers_read_less() -> None:
    program = record(Shape(), "bf16", window=16)
    batch = BatchShape.of([(99, 1)], 1, reaches=program.reaches)
    attend = by_part(program, batch)["attend"]
    assert attend.flops == 3 * 4 * 16 * 6 * 32
    assert attend.kv_bytes == 3 * 2 * 2 * 32 * 2 * (16 + 1)


def test_norm_of_heads_cost() -> None:
    """4 FLOPs and two f32 passes an element of q and k; v is not touched; both gains are read."""
    r = Recorder("heads", STORAGES.get("bf16"))
    qkv = r.linear(r.embed(matrix("embed", 64, 32, "f32")), (matrix("part", (6 + 2 * 2) * 32, 32, "f32"),), "qkv")
    gain = matrix("gain", 1, 32, "f32")
    qkv = r.head_norm(qkv, (gain, gain), 6, 2, 32, 1e-6)
    r.attend(r.rope(qkv, 6, 2, 32, NoRope()), 6, 2, 32, 1.0)
    program = r.finish()
    cost = by_part(program, BatchShape.of([(5, 7)], 1))["head_norm"]
    assert (cost.flops, cost.activation_bytes, cost.weight_bytes) == (4 * 7 * 8 * 32, 8 * 7 * 8 * 32, 2 * 4 * 32)
    assert program.groups[-1] == (2, 5)  # norm, rotation and attention run as one


def test_costs_accept_arrays() -> None:
    """Many steps at once give the same numbers as one by one."""
    program = record(Shape(), "q4_1")
    steps = [BatchShape.of([(0, 9)], 1), BatchShape.of([(9, 1), (3, 4)], 2), BatchShape.of([(30, 1)], 0)]
    fields = ("tokens", "logit_rows", "sequences", "pairs", "kv_tokens")
    together = total(program, BatchShape(*(np.array([getattr(s, f) for s in steps]) for f in fields)))
    for i, step in enumerate(steps):
        alone = total(program, step)
        assert together.flops[i] == alone.flops
        assert together.bytes[i] == alone.bytes


def test_fusion_covers_the_list_and_saves_counted_bytes() -> None:
    """11 operators a layer become 5 groups (D8); only intermediates read inside the group are saved."""
    shape = Shape()
    program = record(shape, "q8_0")
    assert [stop for _, stop in program.groups][:-1] == [start for start, _ in program.groups][1:]
    per_layer = [g for g in program.groups if program.lines[g[0]].layer == 1]
    assert sum(stop - start for start, stop in per_layer) == 11
    assert len(per_layer) == 5
    batch = BatchShape.of([(0, 10)], 1)
    q, kv = 192, 64
    inside = shape.width + (q + 2 * kv) + shape.width + (shape.width + 2 * shape.ffn) + shape.width
    # norm->qkv, rope->attend, o->add, norm->gate_up->activation, down->add; and final norm stays (head is no pattern)
    assert fused_bytes_saved(program, batch) == shape.layers * 10 * 2 * 4 * inside


def test_decode_floor_of_a_7b_model() -> None:
    """A7: 7 B parameters at 16 bits over 2 TB/s are 7.0 ms, 143 tokens/s."""
    seconds = 7e9 * 2 / 2e12
    assert seconds == pytest.approx(7.0e-3)
    assert 1 / seconds == pytest.approx(142.86, rel=1e-4)

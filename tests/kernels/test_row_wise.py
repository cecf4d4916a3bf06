"""embed, norm, rope, activation, add, gather: against NumPy in float64, alone and chained without barriers."""

# size: parametrised over shapes

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.kernels import native
from ridgeline.kit.errors import InvariantError

from .steps import (
    NATIVE_FORMATS,
    Arena,
    Batch,
    check_quantised,
    fitting,
    instruction,
    pack,
    random_weight,
    run,
    set_weight,
    unpacked,
)

COUNTS = (1, 2, 7, 33)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def set_gain(op: native.RlInstr, gain: np.ndarray) -> None:
    op.weight[0].data, op.weight[0].bytes = gain.ctypes.data, gain.nbytes
    op.weight[0].rows, op.weight[0].columns = 1, len(gain)


@pytest.mark.parametrize("width", [1, 5, 32, 100, 576])
@pytest.mark.parametrize("count", COUNTS)
def test_norm(isa, teams, width, count) -> None:
    x, gain = normal(count, width) * 100, normal(width, seed=1)
    arena = Arena()
    source, out = arena.place(x), arena.room(x.nbytes)
    quant = arena.quantised_room(count, width) if width % 32 == 0 else -1
    op = instruction(native.RL_NORM, source=source, out=out, out_quant=quant, width_in=width, width_out=width, eps=1e-5)
    set_gain(op, gain)
    run(teams(3), [op], arena, Batch(count))
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * gain
    np.testing.assert_allclose(arena.read(out, count, width), expected, rtol=2e-6, atol=0)
    if quant >= 0:
        check_quantised(arena, quant, arena.read(out, count, width))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(3, 1, 64), (4, 2, 32), (2, 1, 256), (2, 2, 20)])
@pytest.mark.parametrize("count", COUNTS)
def test_norm_of_heads(isa, teams, heads, kv_heads, dim, count, in_place) -> None:
    """q heads with one gain, k heads with the other, v bit for bit."""
    width = (heads + 2 * kv_heads) * dim
    x, q_gain, k_gain = normal(count, width) * 30, normal(dim, seed=1), normal(dim, seed=2)
    arena = Arena()
    source = arena.place(x)
    out = source if in_place else arena.room(x.nbytes)
    op = instruction(
        native.RL_HEAD_NORM, source=source, out=out, width_in=width, width_out=width, eps=1e-6,
        heads=heads, kv_heads=kv_heads, head_dim=dim,
    )  # fmt: skip
    for slot, gain in enumerate((q_gain, k_gain)):
        op.weight[slot].data, op.weight[slot].columns = gain.ctypes.data, dim
    run(teams(3), [op], arena, Batch(count), kept=(q_gain, k_gain))
    got, wide = arena.read(out, count, width).reshape(count, -1, dim), x.astype(np.float64).reshape(count, -1, dim)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    normed = heads + kv_heads
    np.testing.assert_allclose(got[:, :heads], expected[:, :heads] * q_gain, rtol=2e-6, atol=0)
    np.testing.assert_allclose(got[:, heads:normed], expected[:, heads:normed] * k_gain, rtol=2e-6, atol=0)
    np.testing.assert_array_equal(got[:, normed:], x.reshape(count, -1, dim)[:, normed:])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"heads": 3}, "heads"), ({"head_dim": 0}, "heads"), ({"width_out": 64}, "heads"), ({"gain": 32}, "weight")],
)
def test_a_norm_of_heads_that_does_not_fit_is_refused(teams, change, words) -> None:
    shape = {"width_in": 256, "width_out": 256, "heads": 2, "kv_heads": 1, "head_dim": 64, "gain": 64} | change
    gain, arena = normal(64), Arena()
    columns = shape.pop("gain")
    source = arena.place(normal(2, 256))
    op = instruction(native.RL_HEAD_NORM, source=source, out=source, eps=1e-6, **shape)
    for slot in range(2):
        op.weight[slot].data, op.weight[slot].columns = gain.ctypes.data, columns
    with pytest.raises(InvariantError, match=words):
        run(teams(1), [op], arena, Batch(2), kept=gain)


@pytest.mark.parametrize("name", NATIVE_FORMATS)
@pytest.mark.parametrize("count", COUNTS)
def test_embed_reads_rows_out_of_the_tiles(isa, teams, name, count) -> None:
    columns = fitting(name, 96)
    data = random_weight(name, 70, columns)
    packed = pack(data, name, 70, columns)
    ids = np.random.default_rng(0).integers(0, 70, count).astype(np.int32)
    ids[-1] = 69
    arena = Arena()
    out, quant = arena.room(count * columns * 4), arena.quantised_room(count, columns)
    op = instruction(native.RL_EMBED, out=out, out_quant=quant, width_out=columns, scale=1.5)
    set_weight(op.weight[0], packed)
    run(teams(2), [op], arena, Batch(count, token_ids=ids))
    expected = unpacked(name, data, 70, columns)[ids] * np.float32(1.5)
    np.testing.assert_allclose(arena.read(out, count, columns), expected, rtol=2e-7, atol=1e-9)
    check_quantised(arena, quant, arena.read(out, count, columns))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [64, 32, 6])
@pytest.mark.parametrize("in_place", [True, False])
def test_rope_turns_q_and_k_and_leaves_the_rest(isa, teams, interleaved, rotary, in_place) -> None:
    heads, kv_heads, dim, count, half = 3, 1, 64, 9, rotary // 2
    x, positions = normal(count, 5 * dim), np.array([0, 1, 5, 99, 2, 3, 98, 7, 50], np.int32)
    angles = np.arange(100)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    arena = Arena()
    source = arena.place(x)
    out = source if in_place else arena.room(x.nbytes)
    op = instruction(
        native.RL_ROPE, source=source, out=out, width_in=5 * dim, width_out=5 * dim, heads=heads, kv_heads=kv_heads,
        head_dim=dim, rotary_dim=rotary, flags=native.RL_ROPE_INTERLEAVED if interleaved else 0,
        rope_cos=cos.ctypes.data, rope_sin=sin.ctypes.data,
    )  # fmt: skip
    run(teams(3), [op], arena, Batch(count, positions=positions), kept=(cos, sin))
    expected = x.reshape(count, 5, dim).copy()
    c, s = cos[positions][:, None], sin[positions][:, None]
    first = slice(0, rotary, 2) if interleaved else slice(0, half)
    second = slice(1, rotary, 2) if interleaved else slice(half, rotary)
    a, b = expected[:, :4, first].copy(), expected[:, :4, second].copy()
    expected[:, :4, first], expected[:, :4, second] = a * c - b * s, b * c + a * s
    np.testing.assert_array_equal(arena.read(out, count, 5 * dim), expected.reshape(count, -1))


@pytest.mark.parametrize("function", [native.RL_SILU, native.RL_GELU_TANH])
@pytest.mark.parametrize("width", [3, 32, 100])
@pytest.mark.parametrize("count", COUNTS)
def test_activation(isa, teams, function, width, count) -> None:
    x = normal(count, 2 * width) * 5
    x[0, :3] = (0.0, -200.0, 200.0)
    arena = Arena()
    source, out = arena.place(x), arena.room(count * width * 4)
    quant = arena.quantised_room(count, width) if width % 32 == 0 else -1
    op = instruction(
        native.RL_ACTIVATION, source=source, out=out, out_quant=quant, width_in=2 * width, width_out=width,
        activation=function,
    )  # fmt: skip
    run(teams(3), [op], arena, Batch(count))
    gate, up = x[:, :width].astype(np.float64), x[:, width:]
    angle = gate if function == native.RL_SILU else 2 * (2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    with np.errstate(over="ignore"):
        expected = gate / (1 + np.exp(-angle)) * up
    # A rounding of the angle is a relative error of the exponential; 3 roundings of at most 88 * 2^-24 each.
    error = 2e-6 if function == native.RL_SILU else 1.6e-5
    np.testing.assert_allclose(arena.read(out, count, width), expected, rtol=error, atol=1e-30)
    if quant >= 0:
        check_quantised(arena, quant, arena.read(out, count, width))


def test_the_exponential_is_within_three_units_in_the_last_place(isa, teams) -> None:
    # silu(x) * 1 = x / (1 + e^-x): for x << 0 it is x e^x to within e^x, which shows the exponential itself.
    x = np.linspace(-86, -17, 4096, dtype=np.float32)
    arena = Arena()
    source, out = arena.place(np.concatenate([x, np.ones_like(x)])[None]), arena.room(x.nbytes)
    op = instruction(
        native.RL_ACTIVATION, source=source, out=out, width_in=8192, width_out=4096, activation=native.RL_SILU
    )
    run(teams(1), [op], arena, Batch(1))
    wide = x.astype(np.float64)
    expected = wide / (1 + np.exp(-wide))
    assert np.abs(arena.read(out, 1, 4096)[0] / expected - 1).max() < 3 * 2.0**-23


@pytest.mark.parametrize("count", COUNTS)
def test_add_and_gather(isa, teams, count) -> None:
    x, y = normal(count, 96), normal(count, 96, seed=2)
    wanted = np.array([count - 1, 0, count // 2], np.int32)
    arena = Arena()
    a, b, out, kept = arena.place(x), arena.place(y), arena.room(x.nbytes), arena.room(3 * 96 * 4)
    quant = arena.quantised_room(count, 96), arena.quantised_room(3, 96)
    sizes = {"width_in": 96, "width_out": 96}
    add = instruction(native.RL_ADD, source=a, in2=b, out=out, out_quant=quant[0], **sizes)
    gather = instruction(native.RL_GATHER, source=out, out=kept, out_quant=quant[1], per_logit_row=1, **sizes)
    run(teams(2), [add, gather], arena, Batch(count, 3, logit_token=wanted))
    np.testing.assert_array_equal(arena.read(out, count, 96), x + y)
    np.testing.assert_array_equal(arena.read(kept, 3, 96), (x + y)[wanted])
    check_quantised(arena, quant[0], x + y)
    check_quantised(arena, quant[1], (x + y)[wanted])


def test_chains_without_barriers_give_the_bits_of_one_thread(isa, teams) -> None:
    """Buffers used again at another width are where a missing barrier would show."""
    gain, results = normal(256, seed=5), []
    for threads in (1, 5):
        for _ in range(30):
            arena = Arena()
            wide, narrow, other = arena.place(normal(23, 512)), arena.room(23 * 512 * 4), arena.room(23 * 512 * 4)
            ops = [
                instruction(native.RL_ACTIVATION, source=wide, out=narrow, width_in=512, width_out=256),
                instruction(native.RL_ADD, source=narrow, in2=narrow, out=wide, width_in=256, width_out=256),
                instruction(native.RL_NORM, source=wide, out=other, width_in=256, width_out=256, eps=1e-5),
                instruction(native.RL_ACTIVATION, source=other, out=wide, width_in=256, width_out=128),
                instruction(native.RL_ADD, source=wide, in2=wide, out=narrow, width_in=128, width_out=128),
            ]
            set_gain(ops[2], gain)
            run(teams(threads), ops, arena, Batch(23), kept=gain)
            results.append(arena.read(narrow, 23, 128))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])

"""conv, scan, gated_norm: against NumPy in float64; the same bits in any chunks and company; what a bad tape says."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ridgeline.kernels import native
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.memory.storage.recurrent import RecurrentStorage
from ridgeline.ops.kinds import KINDS
from ridgeline.ops.op import TOKENS, Line, Value
from ridgeline.ops.recurrent import StateShape

from .steps import Arena, Batch, instruction, run

SHAPES = [
    StateShape(2, 64, groups=1, states=128, taps=4),  # Mamba-2 as published
    StateShape(6, 21, groups=3, states=7, taps=2),  # tails in every instruction set
    StateShape(4, 16, groups=4, states=5, taps=1),
    StateShape(1, 100, groups=1, states=3, taps=9),
]


class Layer:
    """Random numbers of one layer; its three operators over a batch of sequences, as the tape runs them."""

    def __init__(self, shape: StateShape, seed: int = 0, biased: bool = True) -> None:
        rng = np.random.default_rng([seed, shape.heads, shape.head_dim])
        self.shape = shape
        self.taps = rng.standard_normal((shape.taps, shape.channels), np.float32)
        self.bias = rng.standard_normal(shape.channels, np.float32) if biased else None
        self.decay = -rng.uniform(1, 16, shape.heads).astype(np.float32)
        self.rate_bias = np.log(np.expm1(rng.uniform(0.001, 0.1, shape.heads))).astype(np.float32)
        self.skip = rng.standard_normal(shape.heads, np.float32)
        self.gain = 1 + rng.standard_normal(shape.inner, np.float32) / 4

    def instructions(self, wide: int, mixed: int, y: int, normed: int) -> list[native.RlInstr]:
        shape = self.shape
        fields = {
            "heads": shape.heads, "kv_heads": shape.groups, "head_dim": shape.head_dim, "states": shape.states,
            "taps": shape.taps, "layer": 1, "eps": 1e-5,
        }  # fmt: skip
        ops = [
            instruction(
                native.RL_CONV, source=wide, out=mixed, width_in=shape.wide, width_out=shape.channels, **fields
            ),
            instruction(
                native.RL_SCAN, source=mixed, in2=wide, out=y, width_in=shape.channels, width_out=shape.inner, **fields
            ),
            instruction(
                native.RL_GATED_NORM,
                source=y,
                in2=wide,
                out=normed,
                width_in=shape.inner,
                width_out=shape.inner,
                **fields,
            ),
        ]
        weights = ((self.taps,), (self.decay, self.rate_bias, self.skip), (self.gain,))
        for op, arrays in zip(ops, weights, strict=True):
            for slot, array in zip(op.weight, arrays, strict=False):
                slot.data, slot.rows, slot.columns = (
                    array.ctypes.data,
                    len(array) if array.ndim > 1 else 1,
                    array.shape[-1],
                )
        if self.bias is not None:
            ops[0].weight[0].bias = self.bias.ctypes.data
        return ops

    def step(
        self, team: native.Team, pool: RecurrentPool, parts: list[tuple[np.ndarray, int, int]], threads_wide: Any = None
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """parts: (wide rows, first position, slot) of each sequence -> (mixed, y, normed) of each."""
        shape, rows = self.shape, sum(len(part[0]) for part in parts)
        arena = Arena()
        wide = arena.place(np.concatenate([part[0] for part in parts]))
        widths = (shape.channels, shape.inner, shape.inner)
        outs = [arena.room(rows * width * 4) for width in widths]
        first = np.cumsum([0, *(len(part[0]) for part in parts)]).astype(np.int32)
        places = np.concatenate([np.arange(start, start + len(x), dtype=np.int32) for x, start, _ in parts])
        slots = np.array([slot for *_, slot in parts], np.int32)
        batch = Batch(rows, positions=places, first_token=first, state_slot=slots)
        batch.struct.sequences = len(parts)
        native.set_states(batch.struct, pool)
        run(team, self.instructions(wide, *outs), arena, batch, kept=self)
        read = [arena.read(out, rows, width) for out, width in zip(outs, widths, strict=True)]
        return [tuple(array[a:b] for array in read) for a, b in itertools.pairwise(first)]  # type: ignore[misc]

    def expected(self, wide: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A whole sequence in float64."""
        shape, x = self.shape, wide.astype(np.float64)
        past = np.concatenate([np.zeros((shape.taps - 1, shape.wide)), x])[
            :, shape.inner : shape.inner + shape.channels
        ]
        sums = sum(self.taps[j] * past[j : j + len(x)] for j in range(shape.taps))
        sums = sums + (self.bias if self.bias is not None else 0)
        mixed = sums / (1 + np.exp(-sums))
        states, out = np.zeros((shape.heads, shape.states, shape.head_dim)), []
        for t, row in enumerate(mixed):
            u = row[: shape.inner].reshape(shape.heads, -1)
            b, c = (
                np.repeat(p, shape.heads // shape.groups, 0) for p in row[shape.inner :].reshape(2, shape.groups, -1)
            )
            rate = np.log1p(np.exp(x[t, -shape.heads :] + self.rate_bias))
            keep = np.exp(rate * self.decay)
            states = states * keep[:, None, None] + b[:, :, None] * (rate[:, None] * u)[:, None, :]
            out.append((np.einsum("hs,hsd->hd", c, states) + u * self.skip[:, None]).ravel())
        y = np.stack(out)
        gate = x[:, : shape.inner]
        gated = (y * gate / (1 + np.exp(-gate))).reshape(len(x), shape.groups, -1)
        normed = gated / np.sqrt((gated**2).mean(-1, keepdims=True) + 1e-5)
        return mixed, y, normed.reshape(len(x), -1) * self.gain


def rows_of(shape: StateShape, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, count]).standard_normal((count, shape.wide), np.float32)


def pool_of(shape: StateShape, slots: int = 4) -> RecurrentPool:
    pool = RecurrentPool(RecurrentStorage(), shape, layers=2, slots=slots)
    pool.data[:] = 255  # NaN: a sequence at position 0 reads nothing of what was there
    return pool


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 33])
def test_against_float64(isa, teams, shape, count, biased) -> None:
    layer, wide = Layer(shape, biased=biased), rows_of(shape, count)
    got = layer.step(teams(3), pool_of(shape), [(wide, 0, 2)])[0]
    for one, expected in zip(got, layer.expected(wide), strict=True):
        np.testing.assert_allclose(one, expected, rtol=2e-5, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_same_bits_in_any_chunks_and_company(isa, teams, shape, threads) -> None:
    layer, team = Layer(shape), teams(threads)
    sequences = [rows_of(shape, count, seed) for seed, count in enumerate((23, 1, 17, 40))]
    alone, pool = [], pool_of(shape)
    for wide in sequences:
        alone.append(layer.step(team, pool, [(wide, 0, 1)])[0])
    chunks = [[5, 1, 1, 16], [1], [16, 1], [1, 2, 3, 33, 1]]
    pool = pool_of(shape)
    found: list[list[Any]] = [[] for _ in sequences]
    for turn in range(5):
        running = [s for s in range(4) if turn < len(chunks[s])]
        running = running[turn % len(running) :] + running[: turn % len(running)]  # another order every time
        starts = {s: sum(chunks[s][:turn]) for s in running}
        parts = [(sequences[s][starts[s] : starts[s] + chunks[s][turn]], starts[s], 3 - s) for s in running]
        for s, answer in zip(running, layer.step(team, pool, parts), strict=True):
            found[s].append(answer)
    for whole, pieces in zip(alone, found, strict=True):
        for part in range(3):
            np.testing.assert_array_equal(np.concatenate([piece[part] for piece in pieces]), whole[part])


def test_a_copied_state_goes_on_with_the_same_bits(isa, teams) -> None:
    shape = SHAPES[1]
    layer, pool, wide = Layer(shape), pool_of(shape), rows_of(shape, 9)
    layer.step(teams(2), pool, [(wide[:5], 0, 0)])
    pool.copy(0, 3)
    first = layer.step(teams(2), pool, [(wide[5:], 5, 0)])[0]
    pool.copy(3, 0)
    for one, other in zip(first, layer.step(teams(2), pool, [(wide[5:], 5, 0)])[0], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_bad_tape_is_refused(isa, teams) -> None:
    shape = SHAPES[0]
    layer, wide = Layer(shape), rows_of(shape, 2)
    pool = pool_of(shape)
    for parts, why in (
        ([(wide, 0, 4)], "out of range"),
        ([(wide, 0, -1)], "out of range"),
        ([(wide, 0, 1), (wide, 0, 1)], "out of range"),  # two sequences in one slot
    ):
        with pytest.raises(InvariantError, match=why):
            layer.step(teams(2), pool, parts)
    pool.layer_bytes -= 64
    with pytest.raises(InvariantError, match="pool"):
        layer.step(teams(2), pool, [(wide, 0, 0)])


@pytest.mark.torch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_their_meanings(isa, teams, shape) -> None:
    import torch

    layer, wide, pool = Layer(shape), rows_of(shape, 20), pool_of(shape)
    got = layer.step(teams(2), pool, [(wide, 0, 0)])[0]
    kept: dict[str, Any] = {}

    def fake(values: np.ndarray) -> Any:
        return SimpleNamespace(values=np.ascontiguousarray(values))

    state = SimpleNamespace(
        read_conv=lambda sequence: torch.zeros(shape.taps - 1, shape.channels),
        write_conv=lambda sequence, inputs: kept.update(conv=inputs.numpy()),
        read_scan=lambda sequence: torch.zeros(shape.heads, shape.states, shape.head_dim),
        write_scan=lambda sequence, states: kept.update(scan=states.numpy()),
    )
    step = SimpleNamespace(
        bounds=((0, 20),), tensor=lambda weight: torch.from_numpy(weight.values), state=lambda index: state
    )
    weights = {
        "conv": (fake(self_taps := layer.taps.T), fake(layer.bias[None])),
        "scan": tuple(fake(v[None]) for v in (layer.decay, layer.rate_bias, layer.skip)),
        "gated_norm": (fake(layer.gain[None]),),
    }
    assert self_taps.shape == (shape.channels, shape.taps)
    attributes = {"shape": shape, "state_layer": 0, "eps": 1e-5}
    before: Any = None
    for kind, native_out in zip(weights, got, strict=True):
        line = Line(0, KINDS[kind], kind, 0, (), Value(0, TOKENS, 1), weights[kind], attributes)
        inputs = (torch.from_numpy(wide),) if before is None else (before, torch.from_numpy(wide))
        before = KINDS[kind].meaning(step, line, *inputs)
        expected = before.numpy()
        assert np.abs(native_out - expected).max() <= KINDS[kind].error_for("") * np.abs(expected).max()
    np.testing.assert_array_equal(pool.conv(0, 1), kept["conv"])
    np.testing.assert_allclose(pool.scan(0, 1), kept["scan"], rtol=1e-4, atol=1e-5 * np.abs(kept["scan"]).max())

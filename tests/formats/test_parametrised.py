"""int8, int4 and fp8: error, idempotence, ragged edges, options, stored bytes; float8 codes against torch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.formats.format import FORMATS
from ridgeline.formats.fp8 import encode, table
from ridgeline.kit.errors import UserError

AFFINE = ("int8", "int8:group=32", "int8:group=64,zero=1", "int4", "int4:group=128", "int4:group=32,zero=1,scale=bf16")
AFFINE += ("int4:group=128,zero=1", "int4:group=0", "int8:zero=1,scale=f32")
FLOAT8 = ("fp8", "fp8:scale=tensor", "fp8:scale=block", "fp8:kind=e5m2", "fp8:kind=e5m2,scale=block")


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


@pytest.mark.parametrize("name", AFFINE)
@given(rows=st.integers(1, 20), columns=st.sampled_from([1, 31, 64, 96, 576, 200]), shift=st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_affine_error_is_half_a_step(name: str, rows: int, columns: int, shift: float) -> None:
    format, values = FORMATS.get(name), normal(rows, columns) + np.float32(shift)
    data = format.pack(values)
    assert data.size == format.nbytes(rows, columns)
    codes, scales, zeros = format.split(data, rows, columns)
    step = np.repeat(scales, format.span or columns, 1)[:, :columns]
    zero = np.repeat(zeros, format.span or columns, 1)[:, :columns].astype(np.float32)
    back = format.unpack(data, rows, columns)
    np.testing.assert_array_equal(back, step * (codes - zero))
    most = (1 << format.bits) - 1
    inside = (values >= step * (0 - zero)) & (values <= step * (most - zero))
    assert (np.abs(values - back) <= step * 0.5001)[inside].all()
    assert (np.abs(values - back) <= step).all()  # a rounded zero moves the range by up to half a step
    again = format.pack(back)
    if not format.zero:  # the largest magnitude is a code, so the grid is found again
        np.testing.assert_allclose(format.unpack(again, rows, columns), back, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("name", [*AFFINE, *FLOAT8])
def test_zeros_stay_zero(name: str) -> None:
    format = FORMATS.get(name)
    assert not format.unpack(format.pack(np.zeros((3, 200), np.float32)), 3, 200).any()
    values = normal(4, 200)
    values[:, ::3] = 0
    assert not format.unpack(format.pack(values), 4, 200)[:, ::3].any()


def test_finer_groups_are_closer_and_bigger() -> None:
    values = normal(64, 576)
    errors, sizes = [], []
    for group in (0, 128, 64, 32):
        format = FORMATS.get(f"int4:group={group}")
        data = format.pack(values)
        errors.append(float(np.square(format.unpack(data, *values.shape) - values).mean()))
        sizes.append(data.size)
    assert errors == sorted(errors, reverse=True) and sizes == sorted(sizes)
    # 576 = 4 x 128 + 64: five scales of 16 bits; with zeros half a byte more for each, in whole bytes a row
    assert sizes[1] == 64 * (576 // 2 + 5 * 2)
    assert FORMATS.get("int4:group=128,zero=1").nbytes(64, 576) == 64 * (576 // 2 + 5 * 2 + 3)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_all_float8_codes_are_those_of_torch(kind: str) -> None:
    import torch

    dtype = torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2
    wanted = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    np.testing.assert_array_equal(table(kind), wanted)
    assert (np.signbit(table(kind)) == np.signbit(wanted))[~np.isnan(wanted)].all()
    finite = table(kind)[np.isfinite(table(kind))]
    middles = np.convolve(np.sort(finite), [0.5, 0.5], "valid").astype(np.float32)
    values = np.concatenate(
        [finite, middles, np.nextafter(middles, 9e9), np.nextafter(middles, -9e9), normal(1, 999)[0]]
    )
    values = values.astype(np.float32)
    inside = np.abs(values) <= finite.max()
    rounded = torch.from_numpy(values[inside]).to(dtype).view(torch.uint8).numpy()
    np.testing.assert_array_equal(encode(values, kind)[inside], rounded)


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize("shape", [(1, 1), (64, 576), (130, 200), (128, 128)])
def test_float8_error_follows_the_scale(name: str, shape: tuple[int, int]) -> None:
    format, values = FORMATS.get(name), normal(*shape)
    data = format.pack(values)
    assert data.size == format.nbytes(*shape)
    back = format.unpack(data, *shape)
    bits = 3 if format.kind == "e4m3" else 2
    smallest = np.abs(values).max() / {"e4m3": 448.0, "e5m2": 57344.0}[format.kind] * 2.0**-6
    assert (np.abs(values - back) <= np.maximum(np.abs(values), smallest) * 2.0 ** -(bits + 1) * 1.001).all()
    np.testing.assert_allclose(format.unpack(format.pack(back), *shape), back, rtol=1e-6)


def test_blocks_have_their_own_scale_at_ragged_edges() -> None:
    values = np.ones((130, 200), np.float32)
    values[128:, 128:] = 1000
    format = FORMATS.get("fp8:scale=block")
    back = format.unpack(format.pack(values), 130, 200)
    np.testing.assert_allclose(back, values, rtol=1e-6)
    assert format.nbytes(130, 200) == 130 * 200 + 4 * 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("int4:group=many", "whole number"),
        ("int4:group=-1", "whole number"),
        ("int4:sign=1", "no option sign"),
        ("int4:zero=2", "none of 0, 1"),
        ("int4:", "written like"),
        ("int4:zero=1,zero=1", "each once"),
        ("fp8:scale=half", "none of tensor, row, block"),
        ("q8_0:group=32", "no options"),
        ("int3", "unknown weight format"),
    ],
)
def test_options_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        FORMATS.get(name)


@pytest.mark.parametrize("name", [*AFFINE, *FLOAT8])
def test_a_name_is_read_back(name: str) -> None:
    assert FORMATS.get(FORMATS.get(name).name) == FORMATS.get(name)
    with pytest.raises(UserError, match="NaN or infinity"):
        FORMATS.get(name).pack(np.array([[1, np.nan]], np.float32))


def test_scales_that_do_not_fit_name_the_cure() -> None:
    with pytest.raises(UserError, match="scale=f32"):
        FORMATS.get("int8").pack(np.full((1, 8), 1e9, np.float32))
    assert (
        FORMATS.get("int8:scale=f32").unpack(FORMATS.get("int8:scale=f32").pack(np.full((1, 8), 1e9, "f")), 1, 8).all()
    )

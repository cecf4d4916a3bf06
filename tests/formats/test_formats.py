"""Every format: exact block bytes (gguf-py where it is installed), round trips, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.formats.format import FORMATS
from ridgeline.formats.weight import StoredWeight, convert
from ridgeline.kit.errors import InvariantError, UserError

BLOCKED = ("q8_0", "q4_0", "q4_1", "q5_0")
WRITABLE = ("f32", "f16", "bf16", *BLOCKED)
LEVELS = {"q8_0": 254, "q4_0": 15, "q4_1": 15, "q5_0": 31}  # steps over the range of a group
MATRICES = {
    "normal": lambda g: g.standard_normal((37, 256), np.float32),
    "tiny": lambda g: 1e-6 * g.standard_normal((3, 256), np.float32),
    "large": lambda g: 1e4 * g.standard_normal((3, 256), np.float32),
    "zero": lambda g: np.zeros((2, 256), np.float32),
    "constant": lambda g: np.full((2, 256), -3.25, np.float32),
    "ties": lambda g: np.round(g.standard_normal((9, 256), np.float32) * 4) / 4,
}


@pytest.mark.parametrize("values", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("name", ("f16", "bf16", *BLOCKED))
def test_packed_bytes_are_those_of_ggml(name, values):
    quants = pytest.importorskip("gguf.quants", reason="gguf-py, the oracle, is not installed")
    kind = quants.GGMLQuantizationType[name.upper()]
    matrix = values(np.random.default_rng(1)).astype(np.float32)
    packed = FORMATS.get(name).pack(matrix)
    expected = quants.quantize(matrix, kind)
    assert packed.tobytes() == expected.tobytes()
    assert np.array_equal(FORMATS.get(name).unpack(packed, *matrix.shape), quants.dequantize(expected, kind))


@pytest.mark.parametrize("name", ["q4_k", "q6_k", *BLOCKED])
def test_random_bits_mean_what_ggml_says(name):
    quants = pytest.importorskip("gguf.quants", reason="gguf-py, the oracle, is not installed")
    kind = quants.GGMLQuantizationType[name.upper()]
    format = FORMATS.get(name)
    rows, columns = 11, 1024
    data = np.random.default_rng(2).integers(0, 256, (rows, format.nbytes(1, columns)), np.uint8)
    blocks = data.reshape(-1, format.nbytes(1, format.group))
    places = {"q4_k": [0, 2], "q6_k": [208], "q4_1": [0, 2]}.get(name, [0])
    for place in places:  # scales of ordinary size: random bits would hold NaN
        blocks[:, place : place + 2] = (
            np.random.default_rng(3).random((len(blocks), 1)).astype(np.float16).view(np.uint8)
        )
    assert np.array_equal(format.unpack(data.reshape(-1), rows, columns), quants.dequantize(data, kind))


@pytest.mark.parametrize("name", BLOCKED)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_error_is_within_a_step(name, data):
    seed, scale = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.floats(0.1, 1e4))  # scales stay normal f16
    matrix = (scale * np.random.default_rng(seed).standard_normal((2, 64))).astype(np.float32)
    format = FORMATS.get(name)
    error = np.abs(format.unpack(format.pack(matrix), 2, 64) - matrix).reshape(-1, 32).max(1)
    groups = matrix.reshape(-1, 32)
    if name == "q4_1":
        step = (groups.max(1) - groups.min(1)) / LEVELS[name]
    else:  # symmetric: the far end of the other sign may be cut by a whole step
        step = 2 * np.abs(groups).max(1) / LEVELS[name]
    room = np.abs(groups).max(1) * 2.0**-9  # rounding of the f16 scale and minimum
    assert (error <= (0.5 if name in ("q4_1", "q8_0") else 1.0) * step + room).all()


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_elements_survive_a_round_trip(name):
    format = FORMATS.get(name)
    exact = np.array([[0.0, -0.0, 1.0, -2.5, 0.15625, 1024.0]], np.float32)  # representable in all three
    assert np.array_equal(format.unpack(format.pack(exact), 1, 6).view(np.uint32), exact.view(np.uint32))


def test_bf16_keeps_infinity_and_nan():
    values = np.array([[np.inf, -np.inf, np.nan, 3.4e38]], np.float32)
    back = FORMATS.get("bf16").unpack(FORMATS.get("bf16").pack(values), 1, 4)
    assert back[0, 0] == np.inf and back[0, 1] == -np.inf and np.isnan(back[0, 2]) and back[0, 3] == np.inf


@pytest.mark.parametrize("name", [*BLOCKED, "f16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -3e38])
def test_what_cannot_be_stored_is_refused(name, bad):
    matrix = np.ones((1, 32), np.float32)
    matrix[0, 5] = bad
    with pytest.raises(UserError, match="f32 or bf16"):
        FORMATS.get(name).pack(matrix)


def test_subnormal_groups_do_not_overflow():
    for name in BLOCKED:
        format = FORMATS.get(name)
        assert not format.unpack(format.pack(np.full((1, 32), 1e-42, np.float32)), 1, 32).any()


@pytest.mark.parametrize("name", FORMATS.names())
def test_bytes_follow_the_shape(name):
    format = FORMATS.get(name)
    assert format.nbytes(3, 512) == 3 * format.nbytes(1, 512)
    with pytest.raises(UserError, match="bytes, not"):
        format.unpack(np.zeros(7, np.uint8), 1, 256)
    if format.group > 1:
        with pytest.raises(UserError, match="columns"):
            format.nbytes(1, format.group + 1)


@pytest.mark.parametrize(("name", "nbytes"), [("q4_1", 20), ("q8_0", 34), ("q4_0", 18), ("q5_0", 22), ("bf16", 64)])
def test_bytes_of_32_values(name, nbytes):
    assert FORMATS.get(name).nbytes(1, 32) == nbytes


def test_weights_convert_and_describe():
    matrix = np.random.default_rng(4).standard_normal((5, 64)).astype(np.float32)
    weight = StoredWeight("w", 5, 64, FORMATS.get("f32"), FORMATS.get("f32").pack(matrix))
    small = convert(weight, FORMATS.get("q8_0"))
    assert small.nbytes == 5 * 68 and np.abs(small.unpack() - matrix).max() < 0.02
    assert convert(weight, FORMATS.get("f32")).data is weight.data
    described = convert(small.describe(), FORMATS.get("bf16"))
    assert described.data is None and described.nbytes == 640
    with pytest.raises(InvariantError):
        described.unpack()
    with pytest.raises(UserError, match=r"w to q4_k.*written"):
        convert(StoredWeight("w", 1, 256, FORMATS.get("f32"), np.zeros(1024, np.uint8)), FORMATS.get("q4_k")).unpack()

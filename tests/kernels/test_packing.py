"""Packing keeps every bit and adds nothing but row padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.formats.format import FORMATS
from ridgeline.kernels import native
from ridgeline.kit.errors import InvariantError, UserError

from .steps import NATIVE_FORMATS, fitting, pack, random_weight, reads_integers


@pytest.mark.parametrize("name", NATIVE_FORMATS)
@given(rows=st.integers(1, 70), groups=st.integers(1, 7), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_unpack_gives_back_what_was_packed(name: str, rows: int, groups: int, seed: int) -> None:
    columns = fitting(name, 32 * groups)
    data = random_weight(name, rows, columns, seed)
    packed = pack(data, name, rows, columns)
    assert packed.data.ctypes.data % 64 == 0
    np.testing.assert_array_equal(packed.unpack(), data)


@pytest.mark.parametrize("name", ["f32", "bf16", "fp8", "fp8:scale=block"])
@pytest.mark.parametrize("columns", [1, 2, 31, 65])
def test_formats_without_groups_take_any_width(name: str, columns: int) -> None:
    data = random_weight(name, 17, columns)
    np.testing.assert_array_equal(pack(data, name, 17, columns).unpack(), data)


@pytest.mark.parametrize("name", NATIVE_FORMATS)
def test_resident_bytes_are_file_bytes_when_rows_fill_their_tiles(name: str) -> None:
    for columns in (fitting(name, 96), fitting(name, 64), fitting(name, 32)):
        packed = pack(random_weight(name, 48, columns), name, 48, columns)
        assert packed.nbytes == FORMATS.get(name).nbytes(48, columns) == random_weight(name, 48, columns).nbytes


@pytest.mark.parametrize("name", [name for name in NATIVE_FORMATS if reads_integers(name)])
def test_weights_that_cannot_be_packed_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=f"groups of {max(32, FORMATS.get(name).group)}"):
        pack(np.zeros(100, np.uint8), name, 1, 33)
    with pytest.raises(UserError, match="bytes, not 3"):
        pack(np.zeros(3, np.uint8), name, 16, fitting(name, 32))
    with pytest.raises(InvariantError, match="descriptor"):
        pack(None, name, 16, fitting(name, 32))


def test_a_format_without_a_body_is_refused() -> None:
    with pytest.raises(UserError, match=r"no native kernel reads int4:group=48.*bf16"):
        pack(np.zeros(3, np.uint8), "int4:group=48", 16, 256)


def test_the_mirrored_structs_have_the_sizes_of_the_header() -> None:
    # Sums of the fields in ridgeline.h with natural alignment; the ABI number guards the rest.
    import ctypes

    assert ctypes.sizeof(native.RlWeight) == 40
    assert ctypes.sizeof(native.RlInstr) == 8 * 4 + 5 * 8 + 10 * 4 + 3 * 8 + 4 * 4 + 2 * 8 + 3 * 40 + 4 * 4
    assert ctypes.sizeof(native.RlPool) == 56
    assert ctypes.sizeof(native.RlSampling) == 80
    assert ctypes.sizeof(native.RlBatch) == 4 * 4 + 27 * 8 + 2 * 4 + 8

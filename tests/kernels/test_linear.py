"""linear: right against an exact integer oracle, and the same bits whatever runs beside a row (promise 1)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .steps import (
    NATIVE_FORMATS,
    fitting,
    linear,
    pack,
    packed_random,
    quantised,
    random_weight,
    reads_integers,
    unpacked,
)

FORMATS = NATIVE_FORMATS
MOST = 65  # rows of the largest batch


def rows_of(count: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, columns]).standard_normal((count, columns), np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 32), (16, 64), (33, 96), (70, 576), (130, 160)])
def test_products_equal_the_exact_ones_up_to_summation(isa, teams, name, shape) -> None:
    rows, columns = shape[0], fitting(name, shape[1])
    data = random_weight(name, rows, columns)
    x = rows_of(14, columns)
    x[3] = 0.0
    x[5, :32] = 0.0
    x[7] *= 1e20
    seen = quantised(x)[0] if reads_integers(name) else x.astype(np.float64)
    weights = unpacked(name, data, rows, columns).astype(np.float64)
    exact = seen @ weights.T
    out = linear(teams(2), x, [pack(data, name, rows, columns)])
    terms = np.abs(seen) @ np.abs(weights).T + 1e-30  # a sum may cancel: its rounding follows its terms
    assert (np.abs(out - exact) / terms).max() < 2e-6


@pytest.mark.parametrize("name", [name for name in FORMATS if reads_integers(name)])
@pytest.mark.parametrize("outlier", [0.0, 6.0, np.inf])
def test_low_planes_are_multiplied_where_they_are_kept(isa, teams, name, outlier) -> None:
    rows, columns = 33, fitting(name, 160)
    data, x = random_weight(name, rows, columns), with_outliers(rows_of(27, columns), share=0.2)
    seen, _, kept = quantised(x, outlier)
    assert kept.any() == (outlier < np.inf) and kept.all() == (outlier == 0)
    weights = unpacked(name, data, rows, columns).astype(np.float64)
    terms = np.abs(seen) @ np.abs(weights).T
    out = linear(teams(2), x, [pack(data, name, rows, columns)], outlier=outlier)
    assert (np.abs(out - seen @ weights.T) / terms).max() < 2e-6


def with_outliers(x: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Some groups of some rows have one element far above the rest."""
    rng = np.random.default_rng([seed, *x.shape])
    groups = x.reshape(len(x), -1, 32)
    hit = rng.random(groups.shape[:2]) < share
    groups[hit, rng.integers(32)] = rng.choice([-40.0, 25.0, 300.0], hit.sum())
    return x


@pytest.mark.parametrize("name", [name for name in FORMATS if reads_integers(name)])
@given(
    shape=st.tuples(st.integers(2, 27), st.integers(1, 4)),
    planted=st.tuples(st.sampled_from((0.02, 0.1, 0.5)), st.integers(0, 99)),
    outlier=st.sampled_from((4.0, 8.0, 20.0)),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_outliers_of_neighbours_change_no_bit(isa, teams, name, shape, planted, outlier) -> None:
    """A row with or without low planes beside rows with or without: panels are crossed at 4 and 12."""
    count, columns = shape[0], fitting(name, 32 * shape[1])
    weight = packed_random(name, 20, columns)
    x = with_outliers(rows_of(count, columns, planted[1]), *planted)
    together = linear(teams(2), x, [weight], outlier=outlier)
    for i in range(count):
        alone = linear(teams(1), x[i : i + 1], [weight], outlier=outlier)
        np.testing.assert_array_equal(together[i : i + 1].view(np.uint32), alone.view(np.uint32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e33])
def test_a_row_that_is_no_number_spoils_itself_only(isa, teams, bad) -> None:
    weight, x = packed_random("q4_1", 20, 64), rows_of(14, 64)
    expected = linear(teams(1), x, [weight], outlier=8.0)
    x[5, 40] = bad
    out = linear(teams(2), x, [weight], outlier=8.0)
    assert np.isnan(out[5]).all()
    np.testing.assert_array_equal(np.delete(out, 5, 0), np.delete(expected, 5, 0))


@pytest.mark.parametrize("name", ["f32", "bf16", "fp8"])
@pytest.mark.parametrize("columns", [1, 2, 7, 33])
def test_formats_without_groups_take_odd_widths(isa, teams, name, columns) -> None:
    data, x = random_weight(name, 19, columns), rows_of(9, columns)
    exact = x.astype(np.float64) @ unpacked(name, data, 19, columns).astype(np.float64).T
    np.testing.assert_allclose(linear(teams(1), x, [pack(data, name, 19, columns)]), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(16, 32), (50, 96), (200, 160)])
def test_a_row_has_the_same_bits_in_every_batch_and_on_every_team(isa, teams, name, shape) -> None:
    columns = fitting(name, shape[1])
    weight, x = packed_random(name, shape[0], columns), rows_of(MOST, columns)
    alone = np.concatenate([linear(teams(1), x[i : i + 1], [weight]) for i in range(MOST)])
    for count in (*range(2, 41), 64, 65):
        for threads in (1, 2, 3, 5) if count % 7 == 0 or count > 60 else (1 + count % 3,):
            out = linear(teams(threads), x[:count], [weight])
            np.testing.assert_array_equal(out.view(np.uint32), alone[:count].view(np.uint32), str((count, threads)))


@pytest.mark.parametrize("name", FORMATS)
@given(rows=st.integers(1, 90), groups=st.integers(1, 5), count=st.integers(2, 20), start=st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_any_slice_of_a_batch_has_the_bits_of_the_batch(teams, name, rows, groups, count, start) -> None:
    columns = fitting(name, 32 * groups)
    weight, x = packed_random(name, rows, columns), rows_of(30, columns)
    whole = linear(teams(2), x, [weight])
    np.testing.assert_array_equal(linear(teams(3), x[start : start + count], [weight]), whole[start : start + count])


def test_parts_of_unlike_formats_share_one_line(isa, teams) -> None:
    mixed = (
        (("q4_1", "q8_0", "bf16"), 96),
        (("q4_k", "q5_0", "q6_k"), 256),
        (("q6_k", "f32", "q4_0"), 256),
        (("int4:zero=1", "fp8:scale=block", "int8"), 160),
    )
    for names, columns in mixed:
        weights = [packed_random(name, rows, columns) for name, rows in zip(names, (40, 17, 100), strict=True)]
        check_parts(teams, weights, columns)


def check_parts(teams, weights, columns) -> None:
    for count in (1, 5, 30):
        x = rows_of(count, columns)
        apart = np.concatenate([linear(teams(1), x, [weight]) for weight in weights], 1)
        np.testing.assert_array_equal(linear(teams(3), x, weights), apart)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("count", [1, 4, 29])
def test_bias_and_residual_are_added_last_and_the_sum_may_overwrite_the_residual(isa, teams, name, count) -> None:
    rng = np.random.default_rng(1)
    columns = fitting(name, 64)
    weights = [packed_random(name, 37, columns), packed_random(name, 16, columns)]
    bias = rng.standard_normal(37, np.float32)
    x, residual = rows_of(count, columns), rng.standard_normal((count, 53), np.float32)
    bare = linear(teams(1), x, weights)
    expected = bare.copy()
    expected[:, :37] += bias
    expected += residual
    for in_place in (False, True):
        out = linear(teams(2), x, weights, biases=[bias, None], residual=residual, in_place=in_place)
        np.testing.assert_array_equal(out, expected)

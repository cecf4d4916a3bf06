"""Rates by rows: interpolated, borrowed from relatives, and what an estimate makes of them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.run.count import weight_bytes
from ridgeline.run.estimate import TYPICAL, Estimator, compute_kind
from ridgeline.run.machine import Fingerprint, Machine, ReadRate
from ridgeline.run.rates import KEPT_OF_PANEL, KEPT_OF_ROW, LineRate, mixed, product_rate

ONE = LineRate((1, 2, 12, 256), (1e-10, 1e-10, 2e-10, 26.4e-10), bits=4, bytes_per_s=1e10)
TWO = LineRate((1, 2, 12, 256), (1e-10, 1.2e-10, 4e-10, 52.8e-10), bits=4, bytes_per_s=1e10)
EIGHT = LineRate((1, 256), (1e-10, 26.5e-10), bits=8, bytes_per_s=1e10)
RATES = {"q4_1 int8": ONE, "q4_1 int16": TWO, "q8_0 int16": EIGHT, "bf16": EIGHT, "norm int8": LineRate((1,), (1e-9,))}


def machine(**changes: object) -> Machine:
    plain = Machine(
        Fingerprint("a cpu", 2, (), 1 << 30, "kernel", "library"), 2, (ReadRate(2, 1 << 28, 1e10, 1e10),),
        {"f32": 1e11, "int8": 4e11}, 0.0, "2026-11-21T00:00:00",
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


@pytest.fixture(scope="module")
def program() -> Program:
    return record(describe("random:smollm2-135m", weights="q4_1"), STORAGES.get("bf16"))


def test_between_rows_it_is_linear_and_beyond_the_last_slope_goes_on():
    assert ONE.at(1) == ONE.at(2) == 1e-10 and ONE.at(7) == pytest.approx(1.5e-10)
    assert ONE.at(500) == pytest.approx(26.4e-10 + 244 * 0.1e-10)
    assert ONE.at(np.array([0, 1, 12])).tolist() == pytest.approx([0, 1e-10, 2e-10])
    assert LineRate((4,), (2.0,)).at(8) == pytest.approx(4.0)


def test_reading_follows_the_bandwidth_and_arithmetic_does_not():
    nbytes, elements = 500, 1000
    assert ONE.weight_seconds(nbytes, elements, 1, 1e10) == pytest.approx(500e-10)
    assert ONE.weight_seconds(nbytes, elements, 1, 2e10) == pytest.approx(250e-10)  # a set that fits a cache
    assert ONE.weight_seconds(nbytes, elements, 12, 2e10) == pytest.approx(750e-10)
    assert ONE.weight_seconds(nbytes, elements, 0, 1e10) == 0
    hasty = msgspec.structs.replace(ONE, bytes_per_s=1e9)  # the bandwidth was measured in a bad moment
    assert hasty.weight_seconds(nbytes, elements, 1, 1e10) == pytest.approx(nbytes / 1e10)


def test_a_format_borrows_from_its_nearest_relative():
    assert product_rate(RATES, "q4_1", 4.5, True, "int16") is TWO
    assert product_rate(RATES, "q6_k", 6.6, True, "int16") is EIGHT
    assert product_rate(RATES, "q4_0", 4.5, True, "int16") is TWO
    assert product_rate(RATES, "f32", 32, False, "int16") is EIGHT
    assert product_rate({}, "q4_1", 4.5, True, "int16") is None
    assert product_rate({"bf16": EIGHT}, "q4_1", 4.5, True, "int16") is None


def test_auto_lies_between_one_plane_and_two():
    auto = product_rate(RATES, "q4_1", 4.5, True, "auto:outlier=6")
    assert auto == mixed(ONE, TWO)
    assert auto.at(256) == pytest.approx(26.4e-10 * (1 + KEPT_OF_PANEL))
    assert ONE.at(2) < auto.at(2) < ONE.at(2) + 0.2 * KEPT_OF_PANEL * ONE.at(2)
    assert KEPT_OF_ROW < KEPT_OF_PANEL
    exact = RATES | {"q4_1 auto": EIGHT}
    assert product_rate(exact, "q4_1", 4.5, True, "auto") is EIGHT


def decode(batch: int) -> BatchShape:
    return BatchShape.of([(100, 1)] * batch, batch)


def test_a_step_of_few_rows_costs_little_more_than_one(program):
    calibrated = Estimator(program, machine(rates=RATES))
    one, five, prompt = (
        calibrated.step_seconds(shape) for shape in (decode(1), decode(5), BatchShape.of([(0, 256)], 1))
    )
    assert one >= weight_bytes(program) / 1e10 * 0.99
    assert 1 < five / one < 2.5 < prompt / one
    faster = Estimator(program, machine(rates=RATES), "int8")
    assert faster.step_seconds(decode(5)) < five and faster.step_seconds(decode(1)) == pytest.approx(one)


def test_arrays_of_steps_give_what_single_steps_do(program):
    estimator = Estimator(program, machine(rates=RATES, host_s=1e-4))
    shapes = [decode(1), decode(7), BatchShape.of([(0, 300)], 1)]
    together = BatchShape(*(np.array([getattr(s, name) for s in shapes]) for name in (
        "tokens", "logit_rows", "sequences", "pairs", "kv_tokens")))  # fmt: skip
    assert estimator.step_seconds(together).tolist() == pytest.approx([estimator.step_seconds(s) for s in shapes])


def test_without_a_calibration_products_reach_what_is_typical_here_and_their_peak_elsewhere(program):
    prompt = BatchShape.of([(0, 256)], 1)
    line = next(line for line in program if line.op.kind == "linear")
    assert compute_kind(line) == "int8"
    cost = line.cost(prompt)
    here = Estimator(program, machine())
    assert here.line_seconds(line, cost, prompt) == pytest.approx(cost.flops / (4e11 * TYPICAL["int16"]))
    described = Estimator(program, machine(source="described, not measured"))
    assert described.line_seconds(line, cost, prompt) == pytest.approx(cost.flops / 4e11)


def attend_of(program):
    return next(line for line in program if line.op.kind == "attend")


def test_calibrated_attention_takes_sequences_further_rows_arithmetic_and_reading_one_after_the_other(program):
    line = attend_of(program)
    rates = RATES | {"attend int8": LineRate((1, 2), (1e-10, 2e-10)), "attend further int8": LineRate((1,), (3e-10,))}
    there = machine(rates=rates, efficiency={"attend f32": 0.5, "attend f32 bytes": 0.8})
    estimator = Estimator(program, there)
    row_bytes = line.cost(BatchShape.of([(0, 1)], 1)).activation_bytes
    for entries, fixed, further in (
        ([(700, 100)], 1e-10, 99),
        ([(50, 1)] * 2, 2e-10, 0),
        ([(50, 1), (9, 4)], 2e-10, 3),
    ):
        shape = BatchShape.of(entries, len(entries))
        cost = line.cost(shape)
        expected = row_bytes * (fixed + further * 3e-10) + cost.flops / 5e10 + cost.kv_bytes / 8e9
        assert estimator.line_seconds(line, cost, shape) == pytest.approx(expected)


def test_without_a_calibration_attention_and_small_operators_take_what_is_typical_here_only(program):
    prompt = BatchShape.of([(0, 256)], 1)
    here, described = Estimator(program, machine()), Estimator(program, machine(source="described, not measured"))
    line = attend_of(program)
    cost = line.cost(prompt)
    assert here.line_seconds(line, cost, prompt) == pytest.approx(cost.flops / (1e11 * TYPICAL["attend"]))
    assert described.line_seconds(line, cost, prompt) == pytest.approx(cost.flops / 1e11)
    small = next(line for line in program if line.op.kind == "norm")
    cost = small.cost(prompt)
    assert here.line_seconds(small, cost, prompt) >= cost.activation_bytes / (TYPICAL["rest"] * 1e10)
    assert described.line_seconds(small, cost, prompt) == pytest.approx(cost.flops / 1e11)

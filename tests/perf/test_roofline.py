"""Roofs by closed form."""

from __future__ import annotations

import msgspec
import pytest

from ridgeline.kit.cost import Cost
from ridgeline.perf.roofline import COMPUTE, KV_BANDWIDTH, WEIGHT_BANDWIDTH, ceilings, intensity, roof_name, roofline
from ridgeline.run.levels import CacheLevel
from ridgeline.run.machine import ReadRate

from .conftest import round_machine


def test_the_weight_read_floor_of_a_7b_model_is_seven_milliseconds_at_two_terabytes_a_second():
    """A7: 7e9 parameters of 2 bytes at 2 TB/s: 7.0 ms, 143 tokens/s."""
    machine = round_machine(bytes_per_s=2e12, flops_per_s=312e12)
    roof = roofline(Cost(flops=14e9, weight_bytes=14e9), 0.0140, machine)
    assert roof.seconds == pytest.approx(7.0e-3)
    assert 1 / roof.seconds == pytest.approx(143, rel=1e-2)
    assert roof.share == pytest.approx(0.5)
    assert roof.name == WEIGHT_BANDWIDTH
    assert roof.ridge == pytest.approx(156)  # A5


@pytest.mark.parametrize(
    ("cost", "name"),
    [
        (Cost(flops=1e9, weight_bytes=1e6), COMPUTE),
        (Cost(flops=1e3, weight_bytes=2e6, kv_bytes=1e6), WEIGHT_BANDWIDTH),
        (Cost(flops=1e3, weight_bytes=1e6, kv_bytes=2e6), KV_BANDWIDTH),
        (Cost(flops=1e3, activation_bytes=1e9), COMPUTE),  # activations stay in the caches
    ],
)
def test_the_binding_roof(cost, name):
    assert roof_name(cost, "f32", round_machine()) == name


def test_intensity_counts_stored_bytes_only():
    assert intensity(Cost(flops=100, weight_bytes=20, kv_bytes=5, activation_bytes=1000)) == 4
    assert intensity(Cost(flops=100, activation_bytes=1000)) is None


def test_the_roofs_of_a_run_are_its_own_and_others_are_drawn_to_compare():
    machine = msgspec.structs.replace(
        round_machine(), caches=(CacheLevel("L2", 1 << 20, 1), CacheLevel("L3", 1 << 24, 2)),
        reads=(ReadRate(2, 1 << 19, 9e6, 9e6, "L2"), ReadRate(2, 1 << 23, 3e6, 3e6, "L3"),
               ReadRate(1, 1 << 23, 2e6, 2e6, "L3"), ReadRate(2, 1 << 28, 1e6, 1e6, "memory")),
    )  # fmt: skip
    large = ceilings(machine, 1 << 28, ["f32"])
    over = {ceiling.name: ceiling.per_s for ceiling in large if ceiling.is_over}
    assert over == {"memory read": 1e6, "f32 arithmetic": 1e8}
    assert {c.name for c in large if not c.is_over} == {"int8 arithmetic", "L2 read", "L3 read"}
    small = ceilings(machine, 1 << 23, ["f32", "int8"])
    assert [c.name for c in small if c.is_over and c.is_slope] == ["L3 read"]
    assert [c.name for c in small if not c.is_over] == ["L2 read"]

"""The catalogue of devices: enough of them, each with a source, dense, and plausible."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from ridgeline.kit.errors import UserError
from ridgeline.run.devices import BASES, KINDS, devices, find_device


def test_there_are_thirty_and_each_names_its_sources():
    assert len(devices()) >= 30
    assert len({one.name for one in devices()}) == len(devices())
    for one in devices():
        assert one.sources and all(urlsplit(link).scheme == "https" and urlsplit(link).netloc for link in one.sources)
        assert one.kind in KINDS and one.basis in BASES
        assert one.bytes_per_s > 1e10 and one.memory_bytes > 2e8
        assert set(one.flops_per_s) <= {"f32", "f16", "bf16", "fp8", "int8", "int4", "fp4"}


def test_peaks_are_dense():
    """Narrower numbers are never more than four times as fast as 16 bits, and never slower; a sparse one would be."""
    for one in devices():
        wide = one.flops_per_s.get("bf16", one.flops_per_s.get("f16"))
        for kind, most in (("fp8", 2.03), ("int8", 4.01)):
            if wide and kind in one.flops_per_s and one.name != "NVIDIA V100 SXM2":  # its int8 has no tensor cores
                assert 0.99 <= one.flops_per_s[kind] / wide <= most, one.name


@pytest.mark.parametrize(
    ("name", "ridge"),
    [("A100 80 GB SXM", 153), ("H100 SXM", 295), ("H200", 206), ("MI300X", 247), ("NVIDIA L4", 403), ("TPU v5p", 166)],
)
def test_ridges_are_those_of_the_recipes(name: str, ridge: int):
    assert find_device(name).ridge == pytest.approx(ridge, abs=1)


def test_the_two_a100_are_apart_and_a_name_must_fit_one():
    assert find_device("nvidia a100 40 gb sxm").bytes_per_s < find_device("A100 80 GB SXM").bytes_per_s
    with pytest.raises(UserError, match="several devices"):
        find_device("A100")
    with pytest.raises(UserError, match=r"no device called 'H1000 SXM': .*H100 SXM"):
        find_device("H1000 SXM")

"""Calibration: what a program needs that was not measured, two rates from parts of prompts, and the calmer of two."""

from __future__ import annotations

import msgspec
import pytest

from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.ops.program import Program
from ridgeline.perf import calibrate
from ridgeline.perf.calibrate import calibrated, fastest, missing
from ridgeline.run.machine import Fingerprint, Machine, Pace, ReadRate, store
from ridgeline.run.rates import LineRate

ONE = LineRate((1, 12), (1e-10, 3e-10), 5.0, 1e10)
MANY = LineRate((1, 12, 256), (1e-10, 3e-10, 6e-9), 5.0, 1e10)
FURTHER = {"attend further int8": LineRate((1,), (1e-9,)), "attend further f32": LineRate((1,), (1e-9,))}


def machine(**changes: object) -> Machine:
    plain = Machine(
        Fingerprint("a cpu", 2, (), 1 << 30, "kernel", "library"), 2, (ReadRate(2, 1 << 28, 1e10, 1e10),),
        {"f32": 1e11, "int8": 4e11}, 0.0, "2026-11-21T00:00:00+00:00",
    )  # fmt: skip
    return msgspec.structs.replace(plain, **changes)


def program(weights: str) -> Program:
    return record(describe("random:smollm2-135m", weights=weights), STORAGES.get("bf16"))


@pytest.mark.parametrize(
    ("weights", "activations", "rates", "wanted"),
    [
        ("q4_1", "int16", {}, (("q4_1", "int16"), ("q8_0", "int16"))),  # its head has 8 bits
        ("q4_1", "int16", {"q4_1 int8": MANY, "q8_0 int16": ONE}, (("q4_1", "int16"),)),
        ("q4_1", "int16", {"q4_1 int16": MANY, "q8_0 int16": ONE}, ()),
        ("q4_1", "int16", {"q4_1 int16": ONE, "q8_0 int16": ONE}, (("q4_1", "int16"),)),  # prompts have many rows
        ("q4_1", "auto:outlier=6", {"q4_1 int16": MANY, "q8_0 auto": ONE}, (("q4_1", "int8"),)),
        ("q4_1", "auto", {"q4_1 auto": MANY, "q8_0 auto": ONE}, ()),
        ("q8_0", "int8", {"q8_0 int8": ONE}, (("q8_0", "int8"),)),
        ("q5_0", "int8", {"q4_1 int8": MANY, "q8_0 int8": ONE}, ()),  # borrows from the nearest
        ("bf16", "int16", {"q4_1 int16": MANY}, (("bf16", "int16"),)),
        ("f32", "int16", {"bf16": MANY}, ()),
    ],
)
def test_only_what_a_program_needs_and_nobody_measured_is_missing(weights, activations, rates, wanted):
    assert missing(program(weights), rates | FURTHER, activations) == wanted


def test_a_calibration_from_before_attention_had_two_rates_is_missing_as_a_whole():
    assert missing(program("q4_1"), {"q4_1 int16": MANY}, "int16") == (("q4_1", "int16"), ("q8_0", "int16"))


def test_rates_of_rows_and_of_flops_are_found_again_and_are_never_negative():
    parts = [(48, 1e6), (192, 2e7), (96, 4e7), (128, 1e8)]
    rows = [calibrate._Attended(n, flops, 0.0, 2e-6 * n + 3e-12 * flops) for n, flops in parts]
    assert calibrate._two_rates(rows) == pytest.approx((2e-6, 3e-12))
    odd = [calibrate._Attended(n, flops, 0.0, max(4e-12 * flops - 1e-8 * n, 1e-9)) for n, flops in parts]
    unit_s, flop_s = calibrate._two_rates(odd)
    assert unit_s == 0.0 and flop_s == pytest.approx(4e-12, rel=0.3)


def test_of_two_calibrations_the_faster_number_stays():
    old = machine(
        rates={"q4_1 int16": ONE, "bf16": ONE}, efficiency={"attend f32": 0.5}, host_s=3e-4, kernels_foreign_share=0.6
    )
    slow = LineRate((1, 12), (2e-10, 2e-10), 5.0, 1e10)
    new = machine(
        rates={"q4_1 int16": slow}, efficiency={"attend f32": 0.4, "attend f32 bytes": 1.0}, host_s=2e-4,
        kernels_foreign_share=0.05, kernels_at="later",
    )  # fmt: skip
    both = fastest(old, new)
    assert both.rates["q4_1 int16"].seconds == (1e-10, 2e-10) and both.rates["bf16"] is ONE
    assert both.efficiency == {"attend f32": 0.5, "attend f32 bytes": 1.0} and both.host_s == 2e-4
    assert (both.kernels_at, both.kernels_foreign_share) == ("later", 0.6)  # bf16 is of that time
    assert fastest(msgspec.structs.replace(old, rates={"q4_1 int16": ONE}), new).kernels_foreign_share == 0.05
    few = msgspec.structs.replace(new, rates={"q4_1 int16": LineRate((1,), (1e-10,), 5.0, 1e10)})
    assert fastest(old, few).rates["q4_1 int16"] is ONE  # rows are not forgotten for those of a head
    assert fastest(machine(), new).host_s == 2e-4


@pytest.fixture
def benches(monkeypatch, tmp_path):
    """Formats that were benched, on a machine whose kernels nobody has calibrated; no kernel runs."""
    made: list[tuple[str, str]] = []

    class Bench:
        def __init__(self, machine, model, weights, activations):
            made.append((weights, activations))
            self.program, self._key, self._mode = program(weights), f"{weights} {activations}", activations

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def rates(self):
            return {self._key: MANY, f"q8_0 {self._mode}": ONE}

        def attention(self, machine):
            return {"attend f32": 0.5}, {"attend further int8": LineRate((1,), (1e-9,))}

    path = tmp_path / "machine.json"
    kept = [machine()]
    monkeypatch.setattr(calibrate, "_Bench", Bench)
    monkeypatch.setattr(calibrate, "recheck", lambda machine: Pace(1.0, 0.97, 0.0))
    monkeypatch.setattr(calibrate, "_host_s", lambda threads: 3e-4)
    monkeypatch.setattr(calibrate, "load_or_measure", lambda threads: kept[-1])
    monkeypatch.setattr(calibrate, "store", lambda found: kept.append(store(found, path)) or found)
    return made, kept


def test_a_machine_is_calibrated_once_and_again_only_when_it_was_disturbed(benches):
    made, kept = benches
    q4 = program("q4_1")
    first = calibrated(q4)
    assert made == [("q4_1", "int16")] and set(first.rates) == {"q4_1 int16", "q8_0 int16", "attend further int8"}
    assert first.host_s == 3e-4 and first.kernels_at and first.kernels_pace == 0.97
    assert calibrated(q4) is kept[-1] and len(made) == 1
    calibrated(q4, activations="int8")
    assert made[1:] == [("q4_1", "int8")]
    kept.append(msgspec.structs.replace(kept[-1], kernels_foreign_share=0.5, kernels_at="2026-01-01T00:00:00+00:00"))
    calibrated(q4)
    assert len(made) == 3 and "q4_1 int8" in kept[-1].rates  # nothing known is lost
    long_ago = {"kernels_foreign_share": 0.0, "kernels_at": "2026-01-01T00:00:00+00:00"}
    kept.append(msgspec.structs.replace(kept[-1], **long_ago, kernels_pace=0.6))
    calibrated(q4)
    assert len(made) == 4
    kept.append(msgspec.structs.replace(kept[-1], **long_ago, kernels_pace=0.97))
    calibrated(q4)
    assert len(made) == 4


def test_without_native_bodies_there_is_nothing_to_calibrate(benches):
    made, kept = benches
    kept.append(machine(source="numpy"))
    assert calibrated(program("q4_1")) is kept[-1] and not made

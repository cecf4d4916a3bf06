"""What `ridgeline doctor --devices` prints: the catalogue, never mixed with what was measured here."""

from __future__ import annotations

from ridgeline.report.units import digits, nbytes, scaled
from ridgeline.run.devices import LABEL, Device, devices
from ridgeline.run.machine import fingerprint

from .screen import Screen

SHOWN = ("f32", "bf16", "int8")


def list_devices(*, json: bool) -> None:
    """Every device: memory, bandwidth, dense peaks, ridge, power, and how sure that is."""
    screen = Screen(json)
    head = ("device", "", "memory", "reads", *SHOWN, "FLOP/byte", "W", "basis")
    screen.table(
        head, [row(one) for one in devices()], f"{len(devices())} devices ({LABEL}: dense peaks, not measured)"
    )
    screen.say(f"{LABEL}: what makers and papers print. This machine's own ceilings are measured: ridgeline doctor.")
    screen.say("links and remarks: --json, or run/devices.json.")
    screen.finish("devices", fingerprint(), label=LABEL, devices=devices())


def row(one: Device) -> tuple[str, ...]:
    """f16 stands in where there is no bf16."""
    peaks = (one.flops_per_s.get(kind, one.flops_per_s.get("f16", 0.0) if kind == "bf16" else 0.0) for kind in SHOWN)
    return (
        one.name, one.kind, nbytes(one.memory_bytes), scaled(one.bytes_per_s, "B/s"),
        *(scaled(peak, "/s") if peak else "-" for peak in peaks), digits(one.ridge) if one.ridge else "-",
        "-" if one.power_w is None else digits(one.power_w), one.basis,
    )  # fmt: skip

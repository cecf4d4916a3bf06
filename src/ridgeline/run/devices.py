"""The catalogue of devices: peaks and bandwidths as their makers print them, dense, each with its source (M1 to M41).

Nothing in it was measured here, and nothing of it is a Machine: those hold measured ceilings only. Refuses a device
that names no source, and one whose peak is only known with half of the weights zero.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

import msgspec

from ridgeline.kit.errors import UserError

LABEL = "catalogue"  # stands beside every value that comes from here
KINDS = ("gpu", "cpu", "soc", "tpu", "asic", "fpga", "pim")
BASES = (
    "data sheet", "product page", "white paper", "documentation", "paper", "press release", "derived", "from memory",
    "simulation",
)  # fmt: skip


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device. flops_per_s: by kind of number, dense. power_w: its limit; None: not published. link_bytes_per_s: to
    others, both directions together; 0: none, or not known. basis: how sure the values are (BASES); sources: links."""

    name: str
    kind: str
    memory_bytes: int
    bytes_per_s: float
    flops_per_s: dict[str, float]
    power_w: float | None
    link_bytes_per_s: float
    basis: str
    sources: tuple[str, ...]
    note: str = ""

    @property
    def peak_flops_per_s(self) -> float:
        """Of the 16-bit kinds if it has one, else of whatever it has; 0: not published."""
        known = [self.flops_per_s[kind] for kind in ("bf16", "f16", "f32") if kind in self.flops_per_s]
        return known[0] if known else max(self.flops_per_s.values(), default=0.0)

    @property
    def ridge(self) -> float:
        """Operations per byte at which arithmetic and memory take equally long (A5); 0: no peak is known."""
        return self.peak_flops_per_s / self.bytes_per_s


@cache
def devices() -> tuple[Device, ...]:
    """All of the catalogue, in the order of devices.json."""
    return msgspec.json.decode(Path(__file__).with_name("devices.json").read_bytes(), type=tuple[Device, ...])


def find_device(name: str) -> Device:
    """By name, or by a part of it that only one has. UserError otherwise."""
    wanted = name.casefold()
    found = [one for one in devices() if wanted in one.name.casefold()]
    exact = [one for one in found if one.name.casefold() == wanted]
    if len(exact or found) == 1:
        return (exact or found)[0]
    names = [one.name for one in devices()]
    near = [one.name for one in found] or difflib.get_close_matches(name, names, 3, 0.3)
    raise UserError(
        f"the catalogue has {'several devices' if found else 'no device'} called {name!r}: {', '.join(near) or '-'}. "
        "ridgeline doctor --devices lists them all."
    )

"""How several models share one machine: who is called what, and whose threads and memory are whose.

Counted, not guessed: the bills that engines check themselves by are made first, and what is left over is split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.engine.bill import RESERVE_BYTES, MemoryBill, memory_left
from ridgeline.engine.build import bill
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import CapacityError, UserError
from ridgeline.report.units import nbytes
from ridgeline.run.machine import usable_cores

ALIAS = re.compile(r"([\w./-]{1,512})=(.+)")
SPLIT_BYTES = ("kv_bytes", "host_kv_bytes", "disk_kv_bytes")


class Share(msgspec.Struct, frozen=True):
    """One model's part: its name, what is loaded, options of its engine."""

    name: str
    model: str
    options: dict[str, Any]

    def __str__(self) -> str:
        """ "tiny: 1 thread, 64 MiB of KV"."""
        threads, kv = self.options["threads"], self.options.get("kv_bytes")
        kept = "" if kv is None else f", {nbytes(kv)} of KV"
        return f"{self.name}: {threads} thread{'s' if threads > 1 else ''}{kept}"


def named(models: Sequence[str], name: str | None) -> dict[str, str]:
    """Models by what requests call them: NAME=MODEL, or as written. UserError for two of one name."""
    if name is not None and len(models) > 1:
        raise UserError("--name is for one model; name several as NAME=MODEL.")
    found: dict[str, str] = {}
    for given in models:
        alias = None if Path(given).exists() else ALIAS.fullmatch(given)
        called, model = (alias[1], alias[2]) if alias else (given, given)
        called = name or called
        if called in found:
            raise UserError(f"two models are called {called!r}; name them as NAME=MODEL.")
        found[called] = model
    return found


def shares(models: Mapping[str, str], options: Mapping[str, Any], *, is_scripted: bool = False) -> list[Share]:
    """Of one model: everything. Of several: equal parts of the threads and of sizes that were given; a pool of KV whose
    size was not given is what its engine could use, as far as memory goes. CapacityError when weights are too much."""
    if len(models) == 1:
        return [Share(name, model, dict(options)) for name, model in models.items()]
    parts = len(models)
    threads = options.get("threads") or usable_cores()
    sizes = {one: options[one] // parts for one in SPLIT_BYTES if one in options}
    made = [
        Share(name, model, {**options, **sizes, "threads": max(1, threads // parts + (place < threads % parts))})
        for place, (name, model) in enumerate(models.items())
    ]
    if is_scripted or "kv_bytes" in sizes:
        return made
    left = memory_left()
    bills = [bill(EngineConfig(share.model, **share.options), left) for share in made]
    given = pools(bills, left - (parts - 1) * sizes.get("host_kv_bytes", 0))  # a bill reserves its own
    return [
        msgspec.structs.replace(share, options={**share.options, "kv_bytes": size})
        for share, size in zip(made, given, strict=True)
    ]


def pools(bills: Sequence[MemoryBill], available_bytes: int) -> list[int]:
    """Bytes of KV for each: an equal part of what weights leave, and what one does not need is the others'."""
    fixed = sum(one.weight_bytes + one.activation_bytes for one in bills)
    room = available_bytes - fixed - max(one.reserve_bytes for one in bills) - (len(bills) - 1) * RESERVE_BYTES
    if room <= 0:
        raise CapacityError(
            f"{len(bills)} models need {nbytes(fixed)} besides their KV pools; {nbytes(available_bytes)} are left. "
            "Serve fewer, or smaller ones."
        )
    found = dict[int, int]()
    for place in sorted(range(len(bills)), key=lambda place: bills[place].kv_bytes):
        found[place] = min(bills[place].kv_bytes, room // (len(bills) - len(found)))
        room -= found[place]
    return [found[place] for place in range(len(bills))]

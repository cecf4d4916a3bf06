"""Retention: which tokens are kept and which are read. One file a retention, one line in RETENTIONS."""

from __future__ import annotations

from typing import Protocol

from ridgeline.kit.cost import Number
from ridgeline.kit.registry import Registry
from ridgeline.ops.kv import Reach


class Retention(Protocol):
    """prefix_stable: what is kept of a prefix does not depend on what follows, so sequences may share it."""

    name: str
    prefix_stable: bool

    def reach(self, window: int) -> Reach:
        """What a layer reads whose model gives it this window (0: everything)."""
        ...

    def kept(self, tokens: Number) -> Number:
        """How many of the first `tokens` tokens are still held. Numbers or arrays alike."""
        ...


RETENTIONS: Registry[Retention] = Registry("retention", __package__, {"all": ".all:RETENTION"})

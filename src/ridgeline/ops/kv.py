"""Reach and KvGroup: which kept tokens a layer reads, and which layers therefore share pools and block tables (K7)."""

from __future__ import annotations

from dataclasses import dataclass

from .protocols import KvStorage


@dataclass(frozen=True, slots=True, order=True)
class Reach:
    """A token at position p reads itself, the `window` - 1 positions before it (0: all of them) and the first `sinks`.

    heavy > 0: what lies behind the window is kept only while it is among the `heavy` tokens with most attention mass
    of its layer and kv head (C10); then slots are packed (slot < position) and everything in a slot is read.
    """

    window: int = 0
    sinks: int = 0
    heavy: int = 0

    @property
    def is_everything(self) -> bool:
        return self.window == 0

    def __str__(self) -> str:
        named = (("sinks", self.sinks), ("h2o", self.heavy), ("window", self.window))
        return "+".join(f"{name}:{value}" for name, value in named if value) or "all"


@dataclass(frozen=True, slots=True, eq=False)
class KvGroup:
    """Layers that keep and read the same tokens: one pool, one block table a sequence. A layer's place in `layers` is
    its place in the pool (attribute "pool_layer" of its attend line; "group" is `index`)."""

    index: int
    reach: Reach
    kv_heads: int
    head_dim: int
    layers: tuple[int, ...]
    storage: KvStorage

    @property
    def bytes_per_token(self) -> int:
        """K and V of one token in all layers of the group."""
        return len(self.layers) * self.storage.bytes_per_token(self.kv_heads, self.head_dim)

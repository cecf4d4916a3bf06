"""Reach and KvGroup: which kept tokens a layer reads, and which layers therefore share pools and block tables (K7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ridgeline.kit.cost import Number

from .protocols import KvStorage

PACK = 64  # tokens between two packings (C10): fixed positions, so that no schedule changes what is kept


@dataclass(frozen=True, slots=True, order=True)
class Reach:
    """A token at position p reads itself, the `window` - 1 positions before it (0: all of them) and the first `sinks`.

    heavy > 0: what lies behind the window is kept only while it is among the `heavy` tokens with most attention mass
    of its layer and kv head (C10); then slots are packed (slot < position) and everything in a slot is read.

    block > 0: two groups of the same layers keep everything between them (E7). Without is_recent whole blocks of so
    many tokens; with it the tokens of the block that is not whole yet, and sinks.
    """

    window: int = 0
    sinks: int = 0
    heavy: int = 0
    block: int = 0
    is_recent: bool = False

    @property
    def is_everything(self) -> bool:
        return self.window == 0 and not self.is_recent

    @property
    def is_stable(self) -> bool:
        """Whether what is kept of a beginning does not depend on what follows, up to whole blocks."""
        return self.window == 0

    @property
    def budget(self) -> int:
        """Most tokens that stay kept; 0: no limit."""
        return self.sinks + self.heavy + self.window if self.window else 0

    def kept(self, tokens: Number) -> Number:
        """How many of the first `tokens` tokens are kept once they are computed; numbers or arrays alike.

        With `heavy` this is also the slot of token `tokens`: packing happens at multiples of PACK.
        """
        if self.block:
            whole = tokens // self.block * self.block
            least = np.minimum if isinstance(tokens, np.ndarray) else min
            return tokens - whole + least(whole, self.sinks) if self.is_recent else whole
        if not self.window:
            return tokens
        if not self.heavy:
            return np.minimum(tokens, self.budget) if isinstance(tokens, np.ndarray) else min(tokens, self.budget)
        since = tokens % PACK
        packed = tokens - since
        return (np.minimum(packed, self.budget) if isinstance(tokens, np.ndarray) else min(packed, self.budget)) + since

    def __str__(self) -> str:
        if self.block:
            return f"blocks of {self.block} that are " + ("not whole yet" if self.is_recent else "whole")
        named = (("sinks", self.sinks), ("h2o", self.heavy), ("window", self.window))
        return "+".join(f"{name}:{value}" for name, value in named if value) or "all"


EVERYTHING = Reach()


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

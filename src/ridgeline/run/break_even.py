"""LoadOrCompute: from which length on kept state comes back sooner from a tier than by computing it again (B10).

Computing: the estimator's word. Loading: bytes over a bandwidth that was measured on this pool and tier.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ridgeline.memory.storage.storage import BLOCK_TOKENS

from .costs import StepCosts

LOAD_CALL_S = 20e-6  # of one block, besides its bytes: Python's part of Mover.run, measured on the build machine
LONGEST = 1 << 15  # beginnings up to here are tried; state that does not pay by then is not kept in that tier


class LoadOrCompute:
    """Implements state.ports.BreakEven. bytes_per_s: of a tier, asked once."""

    def __init__(self, costs: StepCosts, bytes_per_token: int, bytes_per_s: Callable[[str], float]) -> None:
        self._costs, self._bytes_per_token = costs, bytes_per_token
        self._bytes_per_s = functools.cache(bytes_per_s)
        self._least: dict[str, int] = {}

    def load_s(self, tokens: int, tier: str) -> float:
        return tokens * self._bytes_per_token / self._bytes_per_s(tier) + tokens / BLOCK_TOKENS * LOAD_CALL_S

    def compute_s(self, tokens: int) -> float:
        """What a step takes longer when it computes these tokens too, before one more."""
        whole, last = self._costs.seconds("model", [(0, tokens + 1)], 1), self._costs.seconds("model", [(tokens, 1)], 1)
        return whole - last

    def link_bytes_per_s(self, tokens: int) -> float:
        """The rate of a link over which this many tokens' state travels as long as computing them takes: over a slower
        one the receiver had better compute them itself (E9)."""
        return tokens * self._bytes_per_token / self.compute_s(tokens)

    def least_tokens(self, tier: str) -> int:
        """The shortest beginning, in whole blocks, that pays; 0: none does."""
        if tier not in self._least:
            lengths = [BLOCK_TOKENS]
            while lengths[-1] < LONGEST:
                lengths.append(2 * lengths[-1])
            paying = (n for n in lengths if self.load_s(n, tier) < self.compute_s(n))
            high = next(paying, 0)
            low = high // 2
            while high - low > BLOCK_TOKENS:
                middle = (low + high) // 2 // BLOCK_TOKENS * BLOCK_TOKENS
                low, high = (low, middle) if self.load_s(middle, tier) < self.compute_s(middle) else (middle, high)
            self._least[tier] = high
        return self._least[tier]

    def pays(self, tokens: int, tier: str) -> bool:
        least = self.least_tokens(tier)
        return 0 < least <= tokens

"""Shadow: an index of all prompts seen, as an endless cache would hold them; says which hits were lost, and why (A7).

Counts in whole blocks, in bounded memory: what it has forgotten itself counts as new, so losses are at least these.
Keeps hashes, never tokens. What the engine's cache really does is its own; only its cached counts come here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PLACES = 1 << 18  # for two hashes a block; 1 MiB
DISABLED, SALT, EVICTED = "disabled", "salt", "evicted"


@dataclass(frozen=True, slots=True)
class Known:
    """Of one prompt, in tokens of whole blocks: seen before by anybody, and by those who share with it."""

    anybody: int = 0
    same_salt: int = 0


class Shadow:
    """is_sharing: the engine shares beginnings at all. Not thread-safe. A table of fixed size: what falls on a place
    that is taken is known from then on, what was there is forgotten."""

    def __init__(self, block_tokens: int, is_sharing: bool = True, places: int = PLACES) -> None:
        """places: a power of two."""
        self._block, self._is_sharing, self._mask = max(1, block_tokens), is_sharing, places - 1
        self._tags = array("I", b"\xff" * (4 * places))

    def look(self, prompt: Sequence[int], salt: str = "") -> Known:
        """What was known of a prompt before; from here on it is known. Its last token is always computed."""
        anybody = same = 0
        is_known = is_same = True
        for end, chain in self._chains(prompt):
            is_known, is_same = self._meet(chain) and is_known, self._meet(hash((salt, chain))) and is_same
            anybody, same = (end if is_known else anybody), (end if is_same else same)
        return Known(anybody, same)

    def _meet(self, chain: int) -> bool:
        """Whether it was known; from here on it is."""
        place, tag = chain & self._mask, chain >> 31 & 0x7FFFFFFF
        was = self._tags[place] == tag
        self._tags[place] = tag
        return was

    def lost(self, known: Known, cached: int) -> dict[str, int]:
        """Tokens by reason that a hit could have saved; cached: those that one did."""
        if not self._is_sharing:
            return {DISABLED: known.anybody} if known.anybody else {}
        found = {SALT: known.anybody - max(known.same_salt, cached), EVICTED: known.same_salt - cached}
        return {reason: tokens for reason, tokens in found.items() if tokens > 0}

    def _chains(self, prompt: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(tokens, hash of all of them) at the end of every whole block before the last token."""
        chain = 0
        for begin in range(0, len(prompt) - self._block, self._block):
            end = begin + self._block
            chain = hash((chain, tuple(prompt[begin:end])))
            yield end, chain

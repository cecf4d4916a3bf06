"""Retention: which tokens are kept and which are read. One file a part, one line in RETENTIONS, joined with "+".

`sinks:4+window:512` is two parts; what a part needs another must give. Refuses what does not go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ridgeline.kit.cost import Number
from ridgeline.kit.errors import UserError
from ridgeline.kit.registry import Registry
from ridgeline.ops.kv import Reach

MOST_TOKENS = 1 << 30


class RetentionPart(Protocol):
    """limit narrows what a layer keeps. needs: what others must give, parts or the engine. prefix_stable: what is
    kept of a prefix does not depend on what follows, so sequences may share it."""

    name: str
    takes_number: bool
    prefix_stable: bool
    needs: frozenset[str]
    gives: frozenset[str]

    def limit(self, reach: Reach, tokens: int) -> Reach: ...


RETENTIONS: Registry[RetentionPart] = Registry(
    "retention",
    __package__,
    {
        "all": ".all:RETENTION",
        "window": ".window:RETENTION",
        "sinks": ".sinks:RETENTION",
        "h2o": ".h2o:RETENTION",
    },
)


@dataclass(frozen=True, slots=True)
class Retention:
    """Parts joined. name: as it was written. whole: what a layer keeps whose model reads everything."""

    name: str
    whole: Reach
    prefix_stable: bool
    needs: frozenset[str]  # of the engine

    def reach(self, window: int) -> Reach:
        """What a layer keeps and reads whose model gives it this window (0: everything): the narrower of the two."""
        is_narrower = window and (self.whole.is_everything or window <= self.whole.window)
        return Reach(window) if is_narrower else self.whole

    def kept(self, tokens: Number) -> Number:
        """How many of the first `tokens` tokens are still held. Numbers or arrays alike."""
        return self.whole.kept(tokens)


def make_retention(text: str) -> Retention:
    """The retention that `text` names. UserError for a part that is unknown, twice, without its number or its needs."""
    parts: dict[str, RetentionPart] = {}
    numbers: dict[str, int] = {}
    for word in text.split("+"):
        name, separator, number = word.strip().partition(":")
        part = RETENTIONS.get(name)
        if name in parts:
            raise UserError(f"keep {text!r} names {name} twice.")
        if part.takes_number != bool(separator) or (separator and not _is_count(number)):
            example = f"{name}:256" if part.takes_number else name
            raise UserError(f"keep {text!r}: write {name} as {example} (a number of tokens from 1 to 2^30).")
        parts[name], numbers[name] = part, int(number or 0)
    gives = frozenset[str]().union(*(part.gives for part in parts.values()))
    if "all" in parts and len(parts) > 1:
        raise UserError(f"keep {text!r}: all keeps everything, so nothing can be joined to it.")
    for name, part in parts.items():
        if "recent tokens" in part.needs - gives:
            raise UserError(f"keep {text!r}: {name} needs recent tokens to be kept too; write {text}+window:512.")
    reach = Reach()
    for name, part in parts.items():
        reach = part.limit(reach, numbers[name])
    needs = frozenset[str]().union(*(part.needs for part in parts.values())) - gives
    return Retention(text, reach, all(part.prefix_stable for part in parts.values()), needs)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MOST_TOKENS

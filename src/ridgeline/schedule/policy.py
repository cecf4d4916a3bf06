"""Policy: who is served first, who gives way and who is evicted. One file a policy, one line in POLICIES.

A policy orders; the mechanism (scheduler.py) allocates. It never sees blocks, budgets or tokens' values.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import msgspec

from ridgeline.kit.errors import UserError
from ridgeline.kit.registry import Registry
from ridgeline.state.sequence import Rank, Sequence


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A policy without anything to choose."""


class Policy(Protocol):
    """Write `name` and `rank`; the rest has a meaning already. Ranks may move only when `review` says so."""

    name: ClassVar[str]
    options: ClassVar[type[Any]] = NoOptions  # a frozen dataclass; the policy is made with one
    is_static: ClassVar[bool] = False  # ranks never move; review is not called

    def __init__(self, options: Any) -> None: ...

    def rank(self, sequence: Sequence) -> Rank:
        """Lowest first. End it with sequence.id so that no two are equal."""
        ...

    def review(self, waiting: Many[Sequence], running: Many[Sequence], now: float) -> bool:
        """Before each plan: True when ranks have moved, and both queues are to be sorted again."""
        return True

    def outranks(self, newcomer: Sequence, running: Sequence) -> bool:
        """Whether `running` may be evicted only to let `newcomer` run. Must not go round in a circle."""
        return False

    def passes(self, newcomer: Sequence, running: Sequence) -> bool:
        """Whether the newcomer may start though `running` could use all of a step."""
        return self.outranks(newcomer, running)

    def victim(self, candidates: Many[Sequence]) -> Sequence:
        """Whose blocks are taken back. Candidates in rank order, never empty, never the sequence served first."""
        return least_lost(candidates)

    def served(self, sequence: Sequence, tokens: int) -> None:
        """`tokens` more tokens of the sequence have just been computed."""

    def finished(self, sequence: Sequence, reason: str) -> None:
        """The sequence has ended (TokenEvent.finish) and will not be seen again."""


def least_lost(candidates: Many[Sequence]) -> Sequence:
    """The one whose eviction throws the least computed work away; of equals the last."""
    return min(reversed(candidates), key=lambda sequence: sequence.tokens_computed)


POLICIES: Registry[type[Policy]] = Registry(
    "policy",
    __package__,
    {
        "fcfs": ".fcfs:FcfsPolicy",
        "priority": ".priority:PriorityPolicy",
        "deadline": ".deadline:DeadlinePolicy",
        "shortest": ".shortest:ShortestPolicy",
        "fair": ".fair:FairPolicy",
        "remaining": ".remaining:RemainingPolicy",
    },
)


def make_policy(text: str) -> Policy:
    """A policy from its name, or `name:option=value,option=value`. UserError for what there is not."""
    name, _, written = text.partition(":")
    kind = POLICIES.get(name)
    return kind(_read_options(name, kind.options, written))


def _read_options(name: str, options: type[Any], written: str) -> object:
    known = [field.name for field in fields(options)]
    given: Mapping[str, str] = dict(pair.partition("=")[::2] for pair in written.split(",") if pair)
    for key in given:
        if key not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise UserError(f"policy {name} has no option {key!r}; {has}.")
    try:
        return msgspec.convert(given, options, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"policy {name}: {error}. Write {name}:option=value,option=value.") from error

"""Verdict: one cause of the closed list of EXPLAIN §2, with its share, its ceiling, its evidence and what to try.

Owns how rules (rules.py) meet Evidence; measures nothing. What no rule reaches is `undetermined`, and says what to
measure next: it never guesses.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .evidence import Change, Evidence, quantities
from .facts import Fact, facts_of
from .rules import HEALTHY, REMEDIES, RULES, UNDETERMINED, Rule

NEXT = 3  # causes told after the first
LEAST_NEXT = 0.02
SAVED, MOST_SAVED = 0.8, 0.95  # of a share that a remedy may save: as expected, and at most


class Ceiling(msgspec.Struct, frozen=True):
    """What was reached of what this machine was measured to reach; share = achieved / limit."""

    name: str
    achieved: float
    limit: float
    unit: str
    share: float


class Alternative(msgspec.Struct, frozen=True):
    cause: str
    share: float
    of: str
    holds: bool  # its rule's conditions all hold too


class Verdict(msgspec.Struct, frozen=True):
    """cause: of rules.CAUSES. share: of `of`. gap: what a run at the ceiling (or at the prediction) would save, 0..1.

    evidence: numbers, each with where it came from. changes: the first is to be tried first; gains are
    estimated. measured: the quantities that rules saw. choices: AccountSummary's; {}: the engine chooses no placement.
    """

    cause: str
    words: str
    share: float
    of: str
    ceiling: Ceiling | None
    gap: float
    evidence: tuple[Fact, ...]
    next: tuple[Alternative, ...]
    changes: tuple[Change, ...]
    measured: dict[str, float]
    choices: dict[str, Any] = {}

    @property
    def change(self) -> Change | None:
        """To be tried first."""
        return self.changes[0] if self.changes else None


def judge(evidence: Evidence, rules: tuple[Rule, ...] = RULES) -> Verdict:
    """The first rule that holds, by order and then share."""
    values = quantities(evidence)
    holding = [rule for rule in rules if all(condition.holds(values) for condition in rule.conditions)]
    holding.sort(key=lambda rule: (rule.order, -values.get(rule.share, 0.0)))
    if not holding:
        return _undetermined(evidence, values, rules)
    first = holding[0]
    return Verdict(
        cause=first.cause, words=first.words, share=values[first.share], of=first.of,
        ceiling=ceiling_of(evidence, first), gap=_gap(values), evidence=facts_of(first.cause, evidence, values),
        next=_next(first.cause, rules, values), changes=changes_for(first.cause, evidence, values), measured=values,
        choices=evidence.choices,
    )  # fmt: skip


def ceiling_of(evidence: Evidence, rule: Rule) -> Ceiling | None:
    """The rule's own roof, or that of most of the run."""
    name = rule.roof
    if not name and rule.cause in (HEALTHY, "kernel"):
        paced: dict[str, float] = {}
        for part in evidence.parts:
            for roof, seconds in part.expected_s.items():
                paced[roof] = paced.get(roof, 0.0) + seconds
        name = max(paced, key=lambda roof: paced[roof], default="")
    if name not in evidence.achieved:
        return None
    achieved, limit, unit = evidence.achieved[name]
    return Ceiling(name, achieved, limit, unit, achieved / limit if limit > 0 else 0.0)


def changes_for(cause: str, evidence: Evidence, values: dict[str, float]) -> tuple[Change, ...]:
    """What cures this cause, largest gain first; settings priced on these steps, else what its absence would save."""
    priced = [change for change in evidence.changes if change.cause.replace(" ", "_").lower() == cause]
    if cause == HEALTHY:
        priced = list(evidence.changes)
    found = sorted(priced, key=lambda change: -change.gain)
    for remedy in REMEDIES:
        share = min(values.get(remedy.quantity, 0.0), MOST_SAVED)
        if remedy.cause == cause and share > LEAST_NEXT:
            low, gain = (1 / (1 - share * part) for part in (0.0, SAVED))
            found.append(Change(cause, remedy.option, remedy.words, gain, low, 1 / (1 - share)))
    return tuple(found)


def _gap(values: dict[str, float]) -> float:
    nearness = values.get("nearness", 1.0)
    return max(0.0, 1 - 1 / nearness) if nearness > 0 else 0.0


def _next(first: str, rules: tuple[Rule, ...], values: dict[str, float]) -> tuple[Alternative, ...]:
    """Other causes by their share, whether or not they reach their threshold."""
    best: dict[str, Alternative] = {}
    for rule in rules:
        share = values.get(rule.share, 0.0)
        if rule.cause in (first, HEALTHY) or share < LEAST_NEXT or (rule.share == "excess share" and rule.order == 1):
            continue
        if rule.cause not in best or share > best[rule.cause].share:
            holds = all(condition.holds(values) for condition in rule.conditions)
            best[rule.cause] = Alternative(rule.cause, share, rule.of, holds)
    return tuple(sorted(best.values(), key=lambda one: (not one.holds, -one.share))[:NEXT])


def _undetermined(evidence: Evidence, values: dict[str, float], rules: tuple[Rule, ...]) -> Verdict:
    return Verdict(
        cause=UNDETERMINED, words="no row of the list reaches its threshold", share=0.0, of="wall time", ceiling=None,
        gap=_gap(values), evidence=facts_of(UNDETERMINED, evidence, values), next=_next(UNDETERMINED, rules, values),
        changes=(), measured=values, choices=evidence.choices,
    )  # fmt: skip

"""A verdict in words: the cause, its share and ceiling; the numbers behind it; what to try first (EXPLAIN §2)."""

from __future__ import annotations

from collections.abc import Sequence

from ridgeline.perf.evidence import Change, Evidence
from ridgeline.perf.facts import Fact
from ridgeline.perf.rules import HEALTHY, UNDETERMINED
from ridgeline.perf.verdict import Verdict

from .choice_lines import choice_lines
from .units import digits, percent, ratio, scaled, seconds

INDENT = "  "


def verdict_line(verdict: Verdict) -> str:
    """One line for the end of a run: the cause, and what to try."""
    change = verdict.change
    tail = f"; try {change.option} (estimated {_gain(change)})" if change is not None and _pays(change) else ""
    return f"Verdict    {_head(verdict)}{tail}"


def verdict_lines(verdict: Verdict) -> tuple[str, ...]:
    """The whole of it, a line each."""
    lines = [_head(verdict), f"{INDENT}{verdict.words}"]
    if verdict.evidence:
        lines.append(f"{INDENT}evidence: {', '.join(map(_fact, verdict.evidence))}")
    if verdict.next:
        told = (
            f"{one.cause} {percent(one.share)}{'' if one.of == 'wall time' else ' of ' + one.of}"
            for one in verdict.next
        )
        lines.append(f"{INDENT}next: {', '.join(told)}")
    lines += [
        f"{INDENT}{'try first' if number == 0 else 'or'}: {change.option}   estimated {_gain(change)}; {change.words}"
        for number, change in enumerate(verdict.changes[:3])
    ]  # fmt: skip
    if verdict.cause == UNDETERMINED:
        lines.append(
            f"{INDENT}measure next: a longer run on a quiet machine, and `ridgeline doctor --measure` before it"
        )
    return (*lines, *(f"{INDENT}{line}" for line in choice_lines(verdict.choices)))


def verdict_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """The table it rests on: operator, body, measured, expected (estimated), the pace-setter, share of steps."""
    rows: list[tuple[str, ...]] = []
    for part in sorted(evidence.parts, key=lambda part: -part.seconds):
        expected_s = sum(part.expected_s.values())
        pace = max(part.expected_s, key=lambda roof: part.expected_s[roof], default="")
        share = part.seconds / evidence.step_s if evidence.step_s > 0 else 0.0
        body = "reference" if part.body == "torch" else "native"
        rows.append((part.name, body, seconds(part.seconds), seconds(expected_s), pace, percent(share)))
    rows.append(
        ("between operators", "", seconds(evidence.between_s), "", "", _share(evidence.between_s, evidence.step_s))
    )
    return rows


def time_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    """Where the observed time went."""
    spent = {
        "steps": evidence.step_s, "between steps": evidence.host_s,
        "text to tokens and back": evidence.tokenize_s or 0.0,
    }  # fmt: skip
    if evidence.unshared_s:
        spent["threads without a step beside one"] = evidence.unshared_s
    rows: list[tuple[str, ...]] = [
        (name, seconds(value), _share(value, evidence.observed_s)) for name, value in spent.items()
    ]
    idle_s = max(0.0, evidence.observed_s - sum(spent.values()))
    rows.append(("nobody was being served", seconds(idle_s), _share(idle_s, evidence.observed_s)))
    return rows


def _head(verdict: Verdict) -> str:
    if verdict.cause == UNDETERMINED:
        return "undetermined — no cause reaches its threshold"
    if verdict.cause == HEALTHY:
        text = f"healthy — {percent(verdict.share)} of what was predicted or of the nearest roof"
    else:
        text = f"{verdict.cause} — {percent(verdict.share)} of {verdict.of}"
    ceiling = verdict.ceiling
    if ceiling is None:
        return text
    reached = scaled(ceiling.achieved, ceiling.unit)
    return f"{text}; {reached} of {scaled(ceiling.limit, ceiling.unit)} measured here ({percent(ceiling.share)})"


def _fact(fact: Fact) -> str:
    value = _number(fact.value, fact.unit)
    of = "" if fact.of is None else f" of {_number(fact.of, fact.unit)}"
    return f"{fact.name} {value}{of} [{fact.source}]"


def _number(value: float, unit: str) -> str:
    if unit == "s":
        return seconds(value)
    if unit == "share":
        return percent(value)
    if unit == "x":
        return ratio(value)
    return scaled(value, unit) if unit else digits(value)


def _gain(change: Change) -> str:
    return f"{ratio(change.gain)} ({digits(change.low)}–{digits(change.high)})"


def _pays(change: Change) -> bool:
    return change.gain >= 1.1


def _share(value: float, whole: float) -> str:
    return percent(value / whole) if whole > 0 else "–"


def rows_of(verdicts: Sequence[tuple[str, Verdict]]) -> list[tuple[str, ...]]:
    """(what, cause, share, try first) of several."""
    return [
        (
            name, verdict.cause, percent(verdict.share) if verdict.share else "–",
            "–" if verdict.change is None else f"{verdict.change.option} {_gain(verdict.change)}",
        )
        for name, verdict in verdicts
    ]  # fmt: skip

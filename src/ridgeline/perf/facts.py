"""Facts: the numbers a verdict shows, each with its unit and where it came from. Chosen by cause, worded by report/."""

from __future__ import annotations

import msgspec

from .evidence import Evidence
from .process_counters import ProcessCounters
from .roofline import COMPUTE, KV_BANDWIDTH, WEIGHT_BANDWIDTH

ACCOUNT, COUNTERS, PROBE, LEDGER, CEILINGS, ESTIMATOR = (
    "account", "process counters", "probe now", "request ledger", "measured ceilings", "estimator",
)  # fmt: skip
ROOF_OF = {"weight_bandwidth": WEIGHT_BANDWIDTH, "kv_bandwidth": KV_BANDWIDTH, "compute": COMPUTE}
SHOWN = 3  # operators named


class Fact(msgspec.Struct, frozen=True):
    """unit: s, share, B, B/s, FLOP/s, x (a ratio) or "" (a count). of: the number it is a part of."""

    name: str
    value: float
    unit: str
    source: str
    of: float | None = None


def facts_of(cause: str, evidence: Evidence, values: dict[str, float]) -> tuple[Fact, ...]:
    """The few numbers this cause rests on; nothing that was not measured."""
    found = [*_own(cause, evidence, values), *_common(evidence, values)]
    return tuple(found)


def _own(cause: str, evidence: Evidence, values: dict[str, float]) -> list[Fact]:
    if cause in ROOF_OF:
        return _roof(ROOF_OF[cause], evidence)
    if cause == "kernel":
        return _slow(evidence)
    process, waits = evidence.process, evidence.waits
    per_step = 1 / max(1, evidence.steps)
    if cause == "dispatch":
        return [
            Fact("between operators a step", evidence.between_s * per_step, "s", ACCOUNT, evidence.step_s * per_step),
            Fact("native calls a step", values["calls per step"], "", ACCOUNT),
            Fact("operators a step", float(evidence.lines), "", ACCOUNT),
        ]
    if cause == "host":
        return [Fact("between steps, each", evidence.host_s * per_step, "s", ACCOUNT)]
    if cause == "sampling":
        sample_s = evidence.answers_s + sum(part.seconds for part in evidence.parts if part.kind == "sample")
        return [Fact("choosing tokens, a step", sample_s * per_step, "s", ACCOUNT, evidence.step_s * per_step)]
    if cause == "tokenizer" and evidence.tokenize_s is not None:
        return [Fact("text to tokens and back", evidence.tokenize_s, "s", LEDGER, evidence.observed_s)]
    if cause in ("queue", "client") and waits is not None:
        names = [name for name in waits.intervals_s if name.startswith("queue" if cause == "queue" else "client")]
        return [
            Fact(name, waits.intervals_s[name], "s", LEDGER, waits.e2e_s)
            for name in names
            if waits.intervals_s[name] > 0
        ]
    if cause == "kv_capacity":
        again, tokens = float(evidence.tokens_recomputed), float(evidence.tokens)
        found = [Fact("starts over", float(evidence.preemptions), "", ACCOUNT)]
        found.append(Fact("tokens computed again", again, "", ACCOUNT, tokens))
        if evidence.kv_occupancy is not None:
            found.append(Fact("pool in use at most", evidence.kv_occupancy, "share", ACCOUNT))
        return found
    if process is not None and cause in ("threads", "memory_system"):
        return _system(cause, evidence, process, values)
    if cause == "clock" and evidence.pace is not None:
        return [
            Fact("arithmetic now over known", evidence.pace.arithmetic, "x", PROBE),
            Fact("read bandwidth now over known", evidence.pace.read, "x", PROBE),
        ]
    if cause == "underload":
        return [
            Fact("nobody was being served", values.get("idle share", 0.0), "share", ACCOUNT),
            Fact("sequences a step", evidence.sequences_mean, "", ACCOUNT, float(evidence.sequences_limit)),
        ]
    if cause == "undetermined":
        return _missing(evidence, values)
    return []


def _system(cause: str, evidence: Evidence, process: ProcessCounters, values: dict[str, float]) -> list[Fact]:
    if cause == "threads":
        found = [Fact("threads", float(evidence.threads), "", COUNTERS, float(process.cores))]
        if process.wait_share is not None:
            found.append(Fact("ready and not running", process.wait_share, "share", COUNTERS))
        found.append(Fact("involuntary switches", float(process.involuntary_switches), "", COUNTERS))
        if process.throttled_s:
            found.append(Fact("stopped for the quota", process.throttled_s, "s", COUNTERS, process.wall_s))
        return found
    return [
        Fact("major faults", float(process.major_faults), "", COUNTERS),
        Fact("operators above what was expected", values.get("excess share", 0.0), "share", ACCOUNT),
        Fact("swapped", float(process.swapped_bytes), "B", COUNTERS),
    ]


def _roof(roof: str, evidence: Evidence) -> list[Fact]:
    mine = [part for part in evidence.parts if part.expected_s.get(roof, 0.0) > 0.5 * sum(part.expected_s.values())]
    spent_s = sum(part.seconds for part in mine)
    per_step = 1 / max(1, evidence.steps)
    found = [Fact("operators at this roof, a step", spent_s * per_step, "s", ACCOUNT, evidence.step_s * per_step)]
    whole = evidence.weight_bytes + evidence.kv_bytes
    if roof == WEIGHT_BANDWIDTH:
        found.append(Fact("of the bytes are weights", evidence.weight_bytes * per_step, "B", ACCOUNT, whole * per_step))
    if roof == KV_BANDWIDTH:
        found.append(Fact("of the bytes are kept state", evidence.kv_bytes * per_step, "B", ACCOUNT, whole * per_step))
    return found


def _slow(evidence: Evidence) -> list[Fact]:
    def over_s(part: object) -> float:
        return part.seconds - sum(part.expected_s.values())  # type: ignore[attr-defined,no-any-return]

    worst = sorted(evidence.parts, key=over_s, reverse=True)[:SHOWN]
    found = [
        Fact(f"{part.name} ({'reference' if part.body == 'torch' else evidence.isa})", part.seconds, "s", ACCOUNT,
             evidence.step_s)
        for part in worst if over_s(part) > 0
    ]  # fmt: skip
    found += [
        Fact(f"{part.name}, expected of its fast body", sum(part.expected_s.values()), "s", ESTIMATOR)
        for part in worst[:1] if over_s(part) > 0
    ]  # fmt: skip
    return found


def _missing(evidence: Evidence, values: dict[str, float]) -> list[Fact]:
    """The largest shares, none of which is enough."""
    shares = sorted(
        ((name, value) for name, value in values.items() if name.endswith("share")), key=lambda one: -one[1]
    )
    return [Fact(name, value, "share", ACCOUNT) for name, value in shares[:SHOWN]]


def _common(evidence: Evidence, values: dict[str, float]) -> list[Fact]:
    per_step = 1 / max(1, evidence.steps)
    found = [
        Fact("sequences a step", evidence.sequences_mean, "", ACCOUNT),
        Fact("between steps, each", evidence.host_s * per_step, "s", ACCOUNT),
    ]
    if evidence.predicted_s > 0:
        busy = (evidence.step_s + evidence.host_s) / evidence.predicted_s
        found.append(Fact("measured over predicted", busy, "x", ESTIMATOR))
    if evidence.calm > 0:
        found.append(Fact("in the calmest quarter of it", evidence.calm, "x", ESTIMATOR))
    return found

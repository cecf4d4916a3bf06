"""Evidence: everything a verdict may rest on, in one struct, and the quantities its rules speak of.

Made from the account, this machine's measured ceilings and the process's counters; nothing is measured here. It is
plain numbers, so that a stored run can be judged again. What was not measured is None, and no rule fires on it.
"""
# size: gather takes each source of evidence by name

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ridgeline.engine.config import EngineConfig
from ridgeline.run.bind import Bound, lacking
from ridgeline.run.machine import Machine, Pace
from ridgeline.state.messages import EngineFacts

from .process_counters import ProcessCounters
from .roofline import COMPUTE, KV_BANDWIDTH, WEIGHT_BANDWIDTH
from .summary import AccountSummary

ONE_CALL = 1.5  # native calls a step; fewer: the whole step is one, and there is nothing between its operators


class Part(msgspec.Struct, frozen=True):
    """One operator, summed over layers and steps. expected_s: estimated, by the ceiling that sets its pace.

    body: "cpp" or "torch" (reference). is_avoidable: it runs its reference although a faster body is here.
    """

    name: str
    kind: str
    seconds: float
    expected_s: dict[str, float] = {}
    body: str = "cpp"
    is_avoidable: bool = False


class Change(msgspec.Struct, frozen=True):
    """Something to try, priced before it is made: wall time now over wall time then, estimated, with its band."""

    cause: str
    option: str
    words: str
    gain: float
    low: float
    high: float


class Waits(msgspec.Struct, frozen=True):
    """Where requests were, summed over them (EXPLAIN §3): seconds by interval, of e2e_s together."""

    requests: int
    e2e_s: float
    intervals_s: dict[str, float]

    def share(self, *prefixes: str) -> float:
        """Of all requests' time, the intervals whose names begin so."""
        found = sum(s for name, s in self.intervals_s.items() if name.startswith(prefixes))
        return found / self.e2e_s if self.e2e_s > 0 else 0.0


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """observed_s: from the first thing asked to the last told, as the asker saw it; at least the steps' own wall.

    between_s: in steps, between operators. answers_s: in steps, around the model: batches, logits to answers. roof_s:
    what the steps would take at this machine's ceilings alone. achieved: (what was reached, the ceiling, its unit) by
    ceiling, in the phase that it bounds.
    """

    source: str
    model: str
    observed_s: float
    step_s: float
    host_s: float
    unshared_s: float = 0.0  # a step ran, and the rest of the machine had none
    operators_s: float
    between_s: float
    answers_s: float = 0.0
    predicted_s: float
    roof_s: float
    phases_s: dict[str, float]
    parts: tuple[Part, ...]
    achieved: dict[str, tuple[float, float, str]]
    steps: int
    lines: int
    native_calls: int
    sequences_mean: float
    sequences_most: int
    sequences_limit: int
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    kv_occupancy: float | None = None  # kept tokens that the fullest step read, of all that the pool holds
    threads: int = 1
    isa: str | None = None
    best_isa: str | None = None
    pace: Pace | None = None  # ceilings probed around the run, over those known
    calm: float = 0.0  # measured over predicted in the calmest part of the time; 0: not known
    process: ProcessCounters | None = None
    foreign_share: float | None = None
    tokenize_s: float | None = None  # render, tokenise, detokenise, where the engine waited for it
    waits: Waits | None = None
    preemptions: int = 0
    tokens_recomputed: int = 0
    tokens: int = 0
    ranks_s: tuple[float, ...] = ()  # busy seconds of every rank, expert group or stage, where there are several
    link_s: float | None = None  # exposed transfers: collectives, hand-off, swap
    changes: tuple[Change, ...] = ()
    is_random: bool = False
    choices: dict[str, Any] = {}  # AccountSummary's


def gather(
    summary: AccountSummary, bound: Bound, machine: Machine, config: EngineConfig, facts: EngineFacts,
    *, source: str, observed_s: float | None = None, tokenize_s: float | None = None, waits: Waits | None = None,
    now: Pace | None = None, foreign_share: float | None = None, changes: tuple[Change, ...] = (),
    answers_s: float = 0.0,
) -> Evidence:  # fmt: skip
    """Join what was seen. observed_s None: from the first step to the last."""
    phases = {phase.name: phase.seconds for phase in summary.phases}
    capacity = facts.kv_blocks * facts.block_tokens
    tiers_s = summary.transfers_s or None
    return Evidence(
        source=source, model=facts.model, observed_s=max(summary.wall_s, observed_s or 0.0), step_s=summary.step_s,
        host_s=summary.host_s, unshared_s=summary.unshared_s, operators_s=summary.operators_s,
        between_s=max(0.0, summary.between_operators_s - summary.transfers_s - answers_s), answers_s=answers_s,
        predicted_s=summary.predicted_s, roof_s=sum(phase.roof_s for phase in summary.phases), phases_s=phases,
        parts=_parts(summary, bound), achieved=_achieved(summary, machine), steps=summary.steps,
        lines=len(bound.program.lines), native_calls=summary.native_calls, sequences_mean=summary.sequences_mean,
        sequences_most=summary.sequences_most, sequences_limit=config.max_sequences,
        weight_bytes=sum(phase.weight_bytes for phase in summary.phases),
        kv_bytes=sum(phase.kv_bytes for phase in summary.phases),
        kv_occupancy=summary.kv_tokens_most / capacity if capacity else None, threads=facts.threads, isa=facts.isa,
        best_isa=machine.fingerprint.instruction_sets[-1] if machine.fingerprint.instruction_sets else None,
        pace=now, calm=summary.calm_per_predicted, process=summary.process,
        foreign_share=foreign_share, tokenize_s=tokenize_s, waits=waits,
        preemptions=summary.preemptions, tokens_recomputed=summary.tokens_recomputed,
        tokens=sum(phase.tokens for phase in summary.phases), link_s=tiers_s, changes=changes,
        is_random=facts.is_random, choices=summary.choices,
    )  # fmt: skip


def _parts(summary: AccountSummary, bound: Bound) -> tuple[Part, ...]:
    lines = {line.part: line for line in bound.program}
    bodies: dict[str, str] = {}
    for line, body in zip(bound.program, bound.bodies, strict=True):
        bodies[line.part] = body if bodies.get(line.part) != "torch" else "torch"
    return tuple(
        Part(
            part.name, lines[part.name].op.kind, part.seconds, part.expected_s, bodies[part.name],
            bodies[part.name] == "torch" and not lacking(lines[part.name]),
        )
        for part in summary.parts
    )  # fmt: skip


def _achieved(summary: AccountSummary, machine: Machine) -> dict[str, tuple[float, float, str]]:
    """What was reached of each ceiling, over the operators that it bounds."""
    seconds: dict[str, float] = {}
    done: dict[str, float] = {}
    for part in summary.parts:
        if not part.expected_s:
            continue
        roof = max(part.expected_s, key=lambda name: part.expected_s[name])
        seconds[roof] = seconds.get(roof, 0.0) + part.seconds
        amount = part.flops if roof == COMPUTE else part.weight_bytes + part.kv_bytes
        done[roof] = done.get(roof, 0.0) + amount
    found: dict[str, tuple[float, float, str]] = {}
    for roof, spent_s in seconds.items():
        limit, unit = (machine.bandwidth(None), "B/s")
        if roof == COMPUTE:
            limit, unit = max(machine.flops_per_s.values(), default=0.0), "FLOP/s"
        elif roof == WEIGHT_BANDWIDTH:
            limit = summary.bandwidth_bytes_per_s
        if spent_s > 0:
            found[roof] = (done[roof] / spent_s, limit, unit)
    return found


def quantities(evidence: Evidence) -> dict[str, float]:
    """What rules speak of, by name; what is not known is absent. Shares are of observed_s unless they say otherwise.

    Of every operator min(measured, expected) goes to the ceiling that sets its pace; what is above it is `excess`.
    Expected is what the machine's pace around this run allows, where that was probed.
    """
    observed_s = evidence.observed_s
    if observed_s <= 0 or evidence.steps == 0:
        return {"steps": float(evidence.steps)}
    paced, excess_s, avoidable_s = _split(evidence)
    calls = evidence.native_calls / evidence.steps
    sample_s = evidence.answers_s + sum(part.seconds for part in evidence.parts if part.kind == "sample")
    if calls < ONE_CALL:  # nothing was dispatched in between: threads waited for the one that chose the last token
        sample_s += evidence.between_s
    idle_s = max(
        0.0, observed_s - evidence.step_s - evidence.host_s - evidence.unshared_s - (evidence.tokenize_s or 0.0)
    )
    found: dict[str, float | None] = {
        "steps": float(evidence.steps),
        "is timed": float(evidence.operators_s > 0),
        "weight share": paced[WEIGHT_BANDWIDTH] / observed_s,
        "kv share": paced[KV_BANDWIDTH] / observed_s,
        "compute share": paced[COMPUTE] / observed_s,
        "excess share": excess_s / observed_s,
        "reference share": avoidable_s / observed_s,
        "is slower isa": float(evidence.isa != evidence.best_isa and evidence.isa is not None),
        "sampling share": sample_s / observed_s,
        "between share": 0.0 if calls < ONE_CALL else evidence.between_s / observed_s,
        "host share": evidence.host_s / observed_s,
        "idle share": idle_s / observed_s,
        "busy share": (evidence.step_s + evidence.host_s) / observed_s,
        "tokenize share": None if evidence.tokenize_s is None else evidence.tokenize_s / observed_s,
        "recompute share": evidence.phases_s.get("recompute", 0.0) / observed_s,
        "preemptions": float(evidence.preemptions),
        "kv occupancy": evidence.kv_occupancy,
        "slots free": 1 - evidence.sequences_most / max(1, evidence.sequences_limit),
        "calls per step": calls,
        "nearness": _nearness(evidence),
        "link share": None if evidence.link_s is None else evidence.link_s / observed_s,
        "imbalance": _imbalance(evidence),
        "foreign share": evidence.foreign_share,
        **_of_system(evidence),
        **_of_requests(evidence),
    }
    known = {name: value for name, value in found.items() if value is not None}
    known["best gain"] = max((change.gain for change in evidence.changes), default=1.0)
    known["nearness share"] = min(1.0, 1 / known["nearness"]) if known["nearness"] > 0 else 0.0
    again = known["recompute share"] if evidence.preemptions else 0.0  # without a cache all is computed again, too
    known["starved share"] = known.get("queue share", 0.0) + known.get("preempted share", 0.0)
    known["capacity share"] = max(known.get("blocked share", 0.0), again)
    if "arithmetic now" in known:
        known["slower now"] = max(0.0, 1 - known["arithmetic now"])
    return known


def _split(evidence: Evidence) -> tuple[dict[str, float], float, float]:
    """Seconds at the pace of each ceiling, above what was expected, and above it on bodies that need not be."""
    paced = {WEIGHT_BANDWIDTH: 0.0, KV_BANDWIDTH: 0.0, COMPUTE: 0.0}
    slower, excess_s, avoidable_s = slowdowns(evidence.pace), 0.0, 0.0
    for part in evidence.parts:
        expected = {roof: slower[roof] * seconds for roof, seconds in part.expected_s.items()}
        expected_s = sum(expected.values())
        if part.kind == "sample":
            continue
        over_s = max(0.0, part.seconds - expected_s)
        excess_s += over_s
        avoidable_s += over_s if part.is_avoidable else 0.0
        within = min(1.0, part.seconds / expected_s) if expected_s > 0 else 0.0
        for roof, seconds in expected.items():
            paced[roof] += within * seconds
    return paced, excess_s, avoidable_s


def slowdowns(pace: Pace | None) -> dict[str, float]:
    """How many times slower each ceiling is around this run than as known; at least 1: a faster moment proves
    nothing about a run that may have missed it."""
    read, arithmetic = (1.0, 1.0) if pace is None else (pace.read, pace.arithmetic)
    memory = max(1.0, 1 / read) if read > 0 else 1.0
    return {
        WEIGHT_BANDWIDTH: memory, KV_BANDWIDTH: memory, COMPUTE: max(1.0, 1 / arithmetic) if arithmetic > 0 else 1.0,
    }  # fmt: skip


def _nearness(evidence: Evidence) -> float:
    """Busy time over what was predicted (in the calm part of the run, too), or over the roofs alone, whichever is
    nearer: 1 is as fast as it can be."""
    busy_s = evidence.step_s + evidence.host_s
    slower = slowdowns(evidence.pace)
    known_s = sum(sum(part.expected_s.values()) for part in evidence.parts)
    now_s = sum(slower[roof] * seconds for part in evidence.parts for roof, seconds in part.expected_s.items())
    scale = now_s / known_s if known_s > 0 else 1.0
    predicted_s = evidence.predicted_s + (scale - 1) * min(known_s, evidence.predicted_s)
    ratios = [busy_s / ideal for ideal in (predicted_s, scale * evidence.roof_s) if ideal > 0]
    if evidence.calm > 0 and predicted_s > 0:
        ratios.append(evidence.calm * evidence.predicted_s / predicted_s)
    return min(ratios, default=float("inf"))


def _imbalance(evidence: Evidence) -> float | None:
    """Of the slowest rank's time, how much the others wait on average."""
    ranks = evidence.ranks_s
    return None if len(ranks) < 2 or max(ranks) <= 0 else 1 - sum(ranks) / len(ranks) / max(ranks)


def _of_system(evidence: Evidence) -> Mapping[str, float | None]:
    process, now = evidence.process, evidence.pace
    found: dict[str, float | None] = {
        "arithmetic now": None if now is None else now.arithmetic,
        "read now": None if now is None else now.read,
    }
    if process is not None and process.wall_s > 0:
        found |= {
            "run-queue share": process.wait_share,
            "threads per core": evidence.threads / max(1.0, min(process.cores, process.quota_cores or process.cores)),
            "throttled share": None if process.throttled_s is None else process.throttled_s / process.wall_s,
            "major faults a second": process.major_faults / process.wall_s,
            "swapped bytes": float(process.swapped_bytes),
        }
    return found


def _of_requests(evidence: Evidence) -> Mapping[str, float | None]:
    waits = evidence.waits
    if waits is None:
        return {}
    again = ("recompute",) if evidence.preemptions else ()
    return {
        "queue share": waits.share("queue"),
        "blocked share": waits.share("queue_blocked_blocks", "preempted", *again),
        "preempted share": waits.share("preempted", *again),
        "client share": waits.share("client_stall"),
        "text share": waits.share("render", "tokenize", "deliver"),
    }

"""From one engine's account to the evidence of a verdict: joins summary, binding, prices and waits."""
# size: each source of evidence is taken by name

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from ridgeline.engine.assemble import bind_as
from ridgeline.engine.config import EngineConfig
from ridgeline.ops.program import Program
from ridgeline.run.machine import Machine, Pace
from ridgeline.state.messages import EngineFacts

from .account import StepTable
from .cures import price
from .evidence import Evidence, Waits, gather
from .intervals import ClientNote
from .ledger import RunLedger, make_ledger
from .meters import Interval
from .summary import AccountSummary, summarise
from .totals import Window
from .verdict import judge

TEXT = ("render", "tokenize", "grammar", "deliver")  # intervals of the request ledger


@dataclass(frozen=True, slots=True)
class Seen:
    """What only the asker saw. observed_s: from the first thing asked to the last told; tokenize_s: of it, with text
    while the engine waited, None: as the ledger says; now: ceilings around it; foreign_share: of the machine, used by
    others."""

    source: str
    observed_s: float | None = None
    tokenize_s: float | None = None
    now: Pace | None = None
    foreign_share: float | None = None


def evidence_of(
    table: StepTable, ledger: RunLedger, program: Program, config: EngineConfig, facts: EngineFacts, machine: Machine,
    seen: Seen,
) -> Evidence:  # fmt: skip
    """About 0.2 s, most of it for pricing changes; nothing is measured or run."""
    waits = waits_of(ledger)
    summary = summarise(table, program, machine, activations=config.activations)
    wall_s = max(summary.wall_s, seen.observed_s or 0.0)
    return gather(
        summary, bind_as(config, program), machine, config, facts, source=seen.source, observed_s=seen.observed_s,
        tokenize_s=text_s(seen, waits), waits=waits, now=seen.now, foreign_share=seen.foreign_share,
        changes=price(config, table, program, machine, wall_s), answers_s=answers_s(summary, ledger),
    )  # fmt: skip


def window_of(
    page: StepTable, notes: Mapping[str, ClientNote], program: Program, config: EngineConfig, facts: EngineFacts,
    machine: Machine, metered: Interval | None,
) -> Window:  # fmt: skip
    """One page of an endless account, read: its sums and its verdict. Settings are not priced, so nothing is slow."""
    now_s = time.perf_counter()
    if not page.times:
        return Window(now_s, 0.0)
    summary = summarise(page, program, machine, metered, config.activations)
    ledger = make_ledger(page, notes, program, machine)
    waits = waits_of(ledger)
    seen = Seen("live", observed_s=summary.wall_s)
    evidence = gather(
        summary, bind_as(config, program), machine, config, facts, source=seen.source, observed_s=seen.observed_s,
        tokenize_s=text_s(seen, waits), waits=waits, answers_s=answers_s(summary, ledger),
    )  # fmt: skip
    return Window(now_s, summary.wall_s, summary, judge(evidence))


def answers_s(summary: AccountSummary, ledger: RunLedger) -> float:
    """Inside steps, but neither operators nor the gaps between them nor transfers: rows of logits become answers."""
    if not ledger.steps or summary.operators_s <= 0:
        return 0.0
    gaps_s = ledger.gaps_ns * 1e-9 * summary.steps / ledger.steps
    return max(0.0, summary.between_operators_s - summary.transfers_s - gaps_s)


def waits_of(ledger: RunLedger) -> Waits | None:
    """None: no request was seen whole."""
    if not ledger.requests:
        return None
    spent = {name: spent_ns * 1e-9 for name, spent_ns in ledger.wall_ns.items() if spent_ns > 0}
    return Waits(len(ledger.requests), sum(one.e2e_ns for one in ledger.requests) * 1e-9, spent)


def text_s(seen: Seen, waits: Waits | None) -> float | None:
    """One thread turns text into tokens and back, request after request, so their seconds add up."""
    if seen.tokenize_s is not None or waits is None:
        return seen.tokenize_s
    return sum(waits.intervals_s.get(name, 0.0) for name in TEXT)

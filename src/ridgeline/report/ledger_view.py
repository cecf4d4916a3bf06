"""One request's ledger as tables: where its wall time went, and what it caused of the steps."""

from __future__ import annotations

from ridgeline.perf.intervals import INTERVALS
from ridgeline.perf.ledger import RequestLedger, RunLedger
from ridgeline.perf.request_verdict import RequestVerdict

from .units import percent, seconds

Rows = list[tuple[str, ...]]
WORDS = {
    "parse": "reading the request", "render": "chat template", "tokenize": "text to tokens and back",
    "grammar": "compiling a grammar", "queue_untried": "waiting, not tried yet",
    "queue_blocked_budget": "waiting for a slot or tokens of a step", "queue_blocked_blocks": "waiting for KV blocks",
    "queue_blocked_policy": "waiting behind others", "restore": "kept state coming back", "prefill": "prompt",
    "decode": "answer", "draft": "guessing", "verify": "answer, judging guesses", "recompute": "computing again",
    "wait_in_batch": "steps that ran without it", "preempted": "others had its blocks",
    "transfer": "from another process", "engine_gap": "between steps", "deliver": "the last token's way here",
    "client_stall": "the reader was busy", "residual": "unexplained",
}  # fmt: skip
MOST = 5  # operator groups that are named


def wall_rows(one: RequestLedger) -> Rows:
    """(interval, time, share, in words), those that are not 0, and the residual always; then their sum."""
    whole = max(one.e2e_ns, 1)
    rows: Rows = []
    for name in INTERVALS:
        spent = one.wall_ns.get(name, 0)
        if spent or name == "residual":
            rows.append((name, seconds(spent * 1e-9), percent(spent / whole), WORDS[name]))
    return [*rows, ("sum", seconds(one.e2e_ns * 1e-9), percent(sum(one.wall_ns.values()) / whole), "arrival to end")]


def cost_rows(one: RequestLedger) -> Rows:
    """(phase, caused, share, largest operator groups)"""
    whole = max(sum(one.cost_ns.values()), 1)
    rows: Rows = []
    for phase, spent in one.cost_ns.items():
        groups = sorted(one.costs.get(phase, {}).items(), key=lambda pair: -pair[1])[:MOST]
        named = ", ".join(f"{name} {percent(ns / max(spent, 1))}" for name, ns in groups)
        rows.append((phase, seconds(spent * 1e-9), percent(spent / whole), named))
    return rows


def request_line(one: RequestVerdict) -> str:
    """What kept this request: its own waiting, or what bounds the whole run."""
    why = "as the run" if one.is_of_run else "its own"
    return f"verdict of this request: {one.cause}, {percent(one.share)} of its time ({why})"


def token_line(one: RequestLedger) -> str:
    """Where its tokens came from."""
    parts = [
        f"{one.prompt_tokens} prompt tokens = {one.cached_tokens} cached + {one.computed_tokens} computed",
        f"{one.output_tokens} answered",
    ]
    if one.recomputed_tokens:
        parts.append(f"{one.recomputed_tokens} computed again ({one.preemptions} times preempted)")
    if one.tokens_guessed:
        parts.append(f"{one.tokens_guessed} guessed, {one.tokens_accepted} held")
    return "; ".join(parts)


def step_line(run: RunLedger) -> str:
    """Where the steps went, and the account's own cost."""
    whole = max(run.step_ns, 1)
    parts = (("operators", run.operators_ns), ("gaps between them", run.gaps_ns), ("host", run.host_ns))
    named = ", ".join(f"{name} {percent(spent / whole)}" for name, spent in parts)
    own_us = seconds(run.account_ns * 1e-9 / max(run.steps, 1))
    return f"{run.steps} steps: {named}; of that the account itself {own_us} a step, {percent(run.account_ns / whole)}"

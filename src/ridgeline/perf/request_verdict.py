"""The verdict of one request: what its own wall time went to, and where that was the engine's work, the run's verdict.

Owns which interval of the ledger belongs to which cause of rules.py; measures nothing, and names no cause of its own.
"""

from __future__ import annotations

import msgspec

from .ledger import RequestLedger
from .verdict import Verdict

LEAST = 0.4  # of a request's time: below it the engine's own work decides, as for queue and client in rules.py
CAUSES_OF = {
    "tokenizer": ("parse", "render", "tokenize", "grammar", "deliver"),
    "queue": ("queue_untried", "queue_blocked_budget", "queue_blocked_policy"),
    "kv_capacity": ("queue_blocked_blocks", "preempted", "recompute"),
    "link": ("restore", "transfer"),
    "host": ("engine_gap",),
    "client": ("client_stall",),
}


class RequestVerdict(msgspec.Struct, frozen=True):
    """share: of this request's time from arrival to its last event. is_of_run: it was being worked on, so that what
    bounds the run bounds it; then share is how long it was."""

    request_id: str
    cause: str
    share: float
    is_of_run: bool


def judge_request(one: RequestLedger, run: Verdict) -> RequestVerdict:
    """What `one` waited for longest, if that is LEAST of its time; else the run's cause."""
    whole = max(1, one.e2e_ns)
    shares = {cause: sum(one.wall_ns.get(name, 0) for name in names) / whole for cause, names in CAUSES_OF.items()}
    cause = max(shares, key=lambda name: shares[name])
    if shares[cause] >= LEAST:
        return RequestVerdict(one.request_id, cause, shares[cause], False)
    return RequestVerdict(one.request_id, run.cause, 1 - sum(shares.values()), True)

"""Evidence of runs that never were: a well-tuned one, and one change to it for every cause of the closed list."""

from __future__ import annotations

from typing import Any

import msgspec

from ridgeline.perf.evidence import Change, Evidence, Part, Waits
from ridgeline.perf.process_counters import ProcessCounters
from ridgeline.perf.roofline import COMPUTE, KV_BANDWIDTH, WEIGHT_BANDWIDTH
from ridgeline.run.machine import Pace

QUIET = ProcessCounters(wall_s=1.0, run_s=1.9, wait_s=0.02, throttled_s=0.0, threads=2, cores=2)
PARTS = (
    Part("gate_up", "linear", 0.60, {WEIGHT_BANDWIDTH: 0.58}),
    Part("attend", "attend", 0.15, {KV_BANDWIDTH: 0.14}),
    Part("head", "head", 0.15, {COMPUTE: 0.15}),
    Part("sample", "sample", 0.01, {COMPUTE: 0.001}),
)
TUNED = Evidence(
    source="made up", model="tiny", observed_s=1.0, step_s=0.95, host_s=0.03, operators_s=0.91, between_s=0.04,
    predicted_s=0.9, roof_s=0.8, phases_s={"prefill": 0.25, "decode": 0.7}, parts=PARTS,
    achieved={WEIGHT_BANDWIDTH: (9e9, 1e10, "B/s"), KV_BANDWIDTH: (8e9, 1e10, "B/s"), COMPUTE: (9e10, 1e11, "FLOP/s")},
    steps=100, lines=300, native_calls=100, sequences_mean=4.0, sequences_most=8, sequences_limit=8,
    weight_bytes=6e9, kv_bytes=1e9, kv_occupancy=0.3, threads=2, isa="avx512", best_isa="avx512",
    pace=Pace(1.0, 1.0, 0.0), process=QUIET, foreign_share=0.01, tokenize_s=0.01,
    waits=Waits(8, 6.0, {"prefill": 1.0, "decode": 4.0, "queue_untried": 0.2}), tokens=800,
)  # fmt: skip


def changed(**fields: Any) -> Evidence:
    return msgspec.structs.replace(TUNED, **fields)


def system(**fields: Any) -> ProcessCounters:
    return msgspec.structs.replace(QUIET, **fields)


def waiting(**intervals_s: float) -> Waits:
    return Waits(8, 6.0, {"decode": 2.0} | intervals_s)


def part(place: int, **fields: Any) -> tuple[Part, ...]:
    """PARTS with one of them changed."""
    return tuple(msgspec.structs.replace(one, **fields) if at == place else one for at, one in enumerate(PARTS))


def dearer(cause: str, option: str) -> tuple[Change, ...]:
    return (Change(cause, option, "a made-up cure", 2.0, 1.6, 2.2),)


# cause -> evidence in which it is first. Slower steps take longer as a whole: observed_s and step_s grow with them.
MADE_UP = {
    "healthy": [TUNED],
    "weight_bandwidth": [changed(changes=dearer(WEIGHT_BANDWIDTH, "--weights q4_1"))],
    "kv_bandwidth": [
        changed(parts=part(1, seconds=2.0, expected_s={KV_BANDWIDTH: 1.9}), observed_s=2.85, step_s=2.8,
                operators_s=2.76, predicted_s=2.7, changes=dearer(KV_BANDWIDTH, "--kv int8")),
    ],
    "compute": [
        changed(parts=part(2, seconds=2.0, expected_s={COMPUTE: 1.9}), observed_s=2.85, step_s=2.8,
                operators_s=2.76, predicted_s=2.7, changes=dearer(COMPUTE, "--activations auto")),
    ],
    "kernel": [
        changed(parts=part(1, seconds=0.9, body="torch", is_avoidable=True), observed_s=1.75, step_s=1.7,
                operators_s=1.66),
        changed(parts=part(1, seconds=0.9, body="torch", is_avoidable=True), observed_s=1.75, step_s=1.7,
                operators_s=1.66, process=system(wait_s=0.9)),  # a reference brings threads of its own
        changed(parts=part(0, seconds=1.5), isa="plain", observed_s=1.9, step_s=1.85, operators_s=1.81),
        changed(parts=part(0, seconds=3.0), observed_s=3.4, step_s=3.35, operators_s=3.31),
    ],
    "dispatch": [changed(between_s=0.9, observed_s=1.86, step_s=1.81, native_calls=30_000)],
    "host": [changed(host_s=0.6, observed_s=1.57)],
    "tokenizer": [changed(tokenize_s=0.8, observed_s=1.78)],
    "sampling": [
        changed(parts=part(3, seconds=0.8), observed_s=1.79, step_s=1.74, operators_s=1.7),
        changed(answers_s=0.8, observed_s=1.8, step_s=1.75),
        changed(between_s=0.8, observed_s=1.76, step_s=1.71),  # one call a step: threads wait for the last operator
    ],
    "queue": [changed(waits=waiting(queue_untried=4.0)), changed(waits=waiting(queue_blocked_budget=3.5))],
    "kv_capacity": [
        changed(phases_s={"prefill": 0.2, "decode": 0.4, "recompute": 0.35}, preemptions=9, tokens_recomputed=400),
        changed(waits=waiting(queue_blocked_blocks=4.0), kv_occupancy=0.9),
        changed(waits=waiting(queue_untried=3.0), kv_occupancy=0.9, sequences_most=3),
    ],
    "threads": [
        changed(threads=8, process=system(wait_s=5.0, involuntary_switches=900)),
        changed(process=system(throttled_s=0.4)),
        changed(foreign_share=0.5, parts=part(0, seconds=1.2), observed_s=1.6, step_s=1.55, operators_s=1.51),
    ],
    "memory_system": [changed(parts=part(0, seconds=1.5), process=system(major_faults=300), observed_s=1.9, step_s=1.85,
                              operators_s=1.81)],
    "client": [changed(waits=waiting(client_stall=4.0))],
    "underload": [changed(observed_s=4.0)],
    "link": [changed(link_s=0.5)],
    "imbalance": [changed(ranks_s=(1.0, 0.5))],
    "clock": [changed(pace=Pace(0.5, 0.5, 0.0))],
    "undetermined": [
        changed(parts=tuple(Part(one.name, one.kind, 0.0, one.expected_s) for one in PARTS), operators_s=0.0,
                between_s=0.0),
        changed(steps=0, observed_s=0.0),
    ],
}  # fmt: skip

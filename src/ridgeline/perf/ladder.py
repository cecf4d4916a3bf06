"""The ladder: from a naive loop to this engine, each rung a configuration of the real one (seed 002, done right).

Every rung is measured on the same requests, with the same memory, interleaved with the others; beside it stands our own
prediction: the same scheduler replayed on a virtual clock. The first request of a fresh process is shown apart (cold):
counted in, it would pass for a property of the rung.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ridgeline.engine.build import rehearse
from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.run.machine import Machine
from ridgeline.run.noise import CpuWatch

from .account import StepTable
from .ledger import make_ledger
from .observe import Seen, evidence_of
from .replay import Replay, ReplaySummary, rehearse_replay, replay
from .verdict import Verdict, judge
from .workload import Job

WARM_PROMPT, WARM_OUTPUT = 32, 4  # tokens of the request that shows cold against warm
POOL_SEQUENCES = 2  # the KV pool holds this many of the longest request: memory is what paging is about


class Rung(msgspec.Struct, frozen=True):
    """A name, what it adds, and the EngineConfig fields it sets."""

    name: str
    adds: str
    options: dict[str, Any]


BASE = {"weights": "bf16", "prefix": False, "cache": True, "paging": False, "batching": "static", "max_sequences": 1}
RUNGS = (
    Rung("naive", "no cache: all tokens anew for each one", BASE | {"cache": False}),
    Rung("KV cache", "one request at a time", BASE),
    Rung("static batch", "8 together, wait for the longest", BASE | {"max_sequences": 8}),
    Rung("continuous", "join and leave at every step", BASE | {"max_sequences": 8, "batching": "continuous"}),
    Rung("paged", "KV blocks on demand, up to 64 together",
         BASE | {"max_sequences": 64, "batching": "continuous", "paging": True}),
    Rung("chunked prefill", "long prompts in pieces of 128",
         BASE | {"max_sequences": 64, "batching": "continuous", "paging": True, "chunk": 128, "step_tokens": 192}),
    Rung("low-bit weights", "the file's own bits",
         BASE | {"max_sequences": 64, "batching": "continuous", "paging": True, "chunk": 128, "step_tokens": 192,
                 "weights": "native"}),
)  # fmt: skip


class RungResult(msgspec.Struct, frozen=True):
    """Medians over repeats; predicted: from the rehearsal, before anything ran."""

    name: str
    adds: str
    tokens_per_s: float
    ttft_s: float
    tpot_s: float
    itl_p99_s: float  # the stall a reader feels: what chunking is about
    runs: tuple[ReplaySummary, ...]
    cold_ttft_s: float | None = None  # first request of a fresh process, and the same again
    warm_ttft_s: float | None = None
    load_s: float | None = None
    predicted_tokens_per_s: float | None = None
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    predicted_itl_p99_s: float | None = None
    verdict: Verdict | None = None  # of the run in the middle
    first_ids: tuple[tuple[int, ...], ...] = ()  # of the first repeat, request by request


class Measured(msgspec.Struct, frozen=True):
    """One start of a rung: cold and warm first token, then the workload."""

    cold_ttft_s: float
    warm_ttft_s: float
    load_s: float
    replay: Replay
    verdict: Verdict | None = None


def pool_bytes(jobs: Sequence[Job], bytes_per_token: int, block_tokens: int) -> int:
    """KV memory of the whole ladder: a few of the longest requests, and never less than one."""
    longest = max(len(job.prompt) + job.output_tokens for job in jobs) + block_tokens
    blocks = -(-longest // block_tokens)
    return POOL_SEQUENCES * blocks * block_tokens * bytes_per_token


def configured(config: EngineConfig, rung: Rung) -> EngineConfig:
    """`config` with the rung's options; its model, threads and memory stay."""
    return msgspec.structs.replace(config, **rung.options)


def predict_rung(config: EngineConfig, machine: Machine, jobs: Sequence[Job]) -> ReplaySummary:
    """Before it runs: the same scheduler and memory on a clock that only takes estimated steps."""
    clock = VirtualClock()
    return rehearse_replay(rehearse(config, machine, clock), clock, jobs).summary


def measure_rung(
    config: EngineConfig, jobs: Sequence[Job], progress: Callable[[int], None], machine: Machine | None = None
) -> Measured:
    """In a fresh engine process: a first request cold, the same again, then the workload. machine: against whose
    ceilings the verdict is; None: no verdict."""
    prompt = tuple(range(100, 100 + WARM_PROMPT))
    with EngineClient(config) as client:
        cold, warm = (replay(client, [Job(prompt, WARM_OUTPUT)]).requests[0] for _ in range(2))
        client.account(StepTable, reset=True)
        watch, began_s = CpuWatch(), time.perf_counter()
        done = replay(client, jobs, progress)
        seen = Seen("ladder", time.perf_counter() - began_s, foreign_share=watch.foreign_cpu_share())
        verdict = None if machine is None else _judged(client, config, machine, seen)
        return Measured(cold.ttft_s or 0.0, warm.ttft_s or 0.0, client.facts.load_s, done, verdict)


def _judged(client: EngineClient, config: EngineConfig, machine: Machine, seen: Seen) -> Verdict:
    described = describe(config.model, weights=config.weights)
    program = record(described, make_storage(config.storage), config.retention)
    table = client.account(StepTable)
    ledger = make_ledger(table, None, program, machine)
    return judge(evidence_of(table, ledger, program, config, client.facts, machine, seen))


def rung_result(rung: Rung, runs: Sequence[Measured], predicted: ReplaySummary | None) -> RungResult:
    """Medians of what was measured, beside what was predicted."""

    def median(value: Callable[[ReplaySummary], float]) -> float:
        return statistics.median(value(run.replay.summary) for run in runs)

    return RungResult(
        name=rung.name,
        adds=rung.adds,
        tokens_per_s=median(lambda run: run.output_tokens_per_s),
        ttft_s=median(ttft_of),
        tpot_s=median(tpot_of),
        itl_p99_s=median(stall_of),
        runs=tuple(run.replay.summary for run in runs),
        cold_ttft_s=statistics.median(run.cold_ttft_s for run in runs),
        warm_ttft_s=statistics.median(run.warm_ttft_s for run in runs),
        load_s=statistics.median(run.load_s for run in runs),
        predicted_tokens_per_s=None if predicted is None else predicted.output_tokens_per_s,
        predicted_ttft_s=None if predicted is None else ttft_of(predicted),
        predicted_tpot_s=None if predicted is None else tpot_of(predicted),
        predicted_itl_p99_s=None if predicted is None else stall_of(predicted),
        verdict=sorted(runs, key=lambda run: run.replay.summary.output_tokens_per_s)[len(runs) // 2].verdict,
        first_ids=tuple(request.ids for request in runs[0].replay.requests),
    )


def ttft_of(summary: ReplaySummary) -> float:
    """Median over requests; 0 when none came."""
    return 0.0 if summary.ttft_s is None else summary.ttft_s.p50


def tpot_of(summary: ReplaySummary) -> float:
    """Median over requests; 0 when no request had two tokens."""
    return 0.0 if summary.tpot_s is None else summary.tpot_s.p50


def stall_of(summary: ReplaySummary) -> float:
    """99 % of gaps between tokens are shorter; 0 when there was no gap."""
    return 0.0 if summary.itl_s is None else summary.itl_s.p99

"""Replay a workload against a running engine, or against its rehearsal on a virtual clock, and measure every request.

Open loop: requests arrive when the workload says, and latency counts from that intended moment (no coordinated
omission). Greedy, the end-of-sequence is ignored, so both sides of a comparison make the same number of tokens.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from ridgeline.engine.client import Deliver
from ridgeline.engine.engine import Engine
from ridgeline.kit.clock import VirtualClock
from ridgeline.kit.errors import RidgelineError
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

from .workload import Job

FALLEN_BEHIND = 0.01  # of the run: more, and what was offered is not what was asked for
PERCENTILES = (50, 90, 99)
FEW = 300  # requests below which a p99 says little


class Target(Protocol):
    """Whoever takes requests: engine.client.EngineClient, or LLM."""

    def submit_to(self, request: Request, deliver: Deliver) -> None: ...


class RequestResult(msgspec.Struct, frozen=True):
    """One request (definitions: EXPLAIN §11). Seconds from intended arrival; error: why it has no tokens, refused_s:
    until that was known. counted: output tokens where ids are not told (a server's usage)."""

    ids: tuple[int, ...]
    prompt_tokens: int
    arrival_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    preemptions: int = 0
    error: str | None = None
    counted: int = 0
    refused_s: float | None = None
    has_retry: bool = False  # the refusal says when to come back

    @property
    def output_tokens(self) -> int:
        return len(self.ids) or self.counted


class Spread(msgspec.Struct, frozen=True):
    """Nearest-rank percentiles over `n` values."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    p99_is_thin: bool


class ReplaySummary(msgspec.Struct, frozen=True):
    """Throughput over first intended arrival to last token; delivered tokens only. late_s: the generator's lag."""

    requests: int
    failed: int
    prompt_tokens: int
    output_tokens: int
    wall_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    e2e_s: Spread | None
    preemptions: int
    late_s: float
    is_void: bool


class Replay(msgspec.Struct, frozen=True):
    requests: tuple[RequestResult, ...]
    summary: ReplaySummary


def replay(target: Target, jobs: Sequence[Job], progress: Callable[[int], None] = lambda done: None) -> Replay:
    """Send every job at its time and wait for all. progress: requests just finished."""
    inbox: queue.SimpleQueue[tuple[int, TokenEvent | RidgelineError]] = queue.SimpleQueue()
    order = sorted(range(len(jobs)), key=lambda index: jobs[index].arrival_s)
    events: list[list[TokenEvent]] = [[] for _ in jobs]
    errors: dict[int, str] = {}
    start, late_s, sent, done = time.perf_counter(), 0.0, 0, 0
    name = f"replay-{start}"  # ids are free again only when their last event has come

    def deliver(index: int) -> Callable[[TokenEvent | RidgelineError], None]:
        return lambda event: inbox.put((index, event))

    while done < len(jobs):
        now = time.perf_counter() - start
        while sent < len(jobs) and jobs[order[sent]].arrival_s <= now:
            index = order[sent]
            late_s = max(late_s, now - jobs[index].arrival_s)
            sent += 1
            try:
                target.submit_to(_request(jobs[index], f"{name}-{index}", start), deliver(index))
            except RidgelineError as error:
                inbox.put((index, error))
        wait_s = jobs[order[sent]].arrival_s - now if sent < len(jobs) else None
        try:
            index, event = inbox.get(timeout=wait_s)
        except queue.Empty:
            continue
        if isinstance(event, RidgelineError):
            errors[index] = str(event)
            done += 1
            progress(1)
            continue
        events[index].append(event)
        if event.finish is not None:
            if event.error is not None:
                errors[index] = event.error
            done += 1
            progress(1)
    results = tuple(_result(job, events[i], start, errors.get(i)) for i, job in enumerate(jobs))
    return Replay(results, summarise_replay(results, late_s))


def rehearse_replay(engine: Engine, clock: VirtualClock, jobs: Sequence[Job]) -> Replay:
    """The same on a virtual clock: what the scheduler would do if every step took its estimated time."""
    order = sorted(range(len(jobs)), key=lambda index: jobs[index].arrival_s)
    start, sent = clock.now(), 0
    events: list[list[TokenEvent]] = [[] for _ in jobs]
    errors: dict[int, str] = {}
    while sent < len(jobs) or engine.has_work:
        if not engine.has_work and jobs[order[sent]].arrival_s > clock.now() - start:
            clock.advance(jobs[order[sent]].arrival_s - (clock.now() - start))
        while sent < len(jobs) and jobs[order[sent]].arrival_s <= clock.now() - start + 1e-12:
            index = order[sent]
            sent += 1
            try:
                engine.add(_request(jobs[index], str(index), start))
            except RidgelineError as error:
                errors[index] = str(error)
        for event in engine.step():
            events[int(event.request)].append(event)
    results = tuple(_result(job, events[i], start, errors.get(i)) for i, job in enumerate(jobs))
    return Replay(results, summarise_replay(results, 0.0))


def _request(job: Job, name: str, start: float) -> Request:
    return Request(
        name, job.prompt, job.output_tokens, ignore_stop=True, priority=job.priority, arrival_s=start + job.arrival_s
    )


def _result(job: Job, events: Sequence[TokenEvent], start: float, error: str | None) -> RequestResult:
    arrival_s = start + job.arrival_s
    ids = tuple(token for event in events for token in event.tokens)
    times = [event.at_s for event in events if event.tokens]
    if error is not None or not times:
        return RequestResult(ids, len(job.prompt), job.arrival_s, error=error or "no token came")
    ttft_s, e2e_s = times[0] - arrival_s, times[-1] - arrival_s
    tpot_s = (e2e_s - ttft_s) / (len(ids) - 1) if len(ids) > 1 else None
    gaps = tuple(float(gap) for gap in np.diff(times))
    return RequestResult(
        ids, len(job.prompt), job.arrival_s, ttft_s, tpot_s, e2e_s, gaps, max(event.preemptions for event in events)
    )


def summarise_replay(results: Sequence[RequestResult], late_s: float) -> ReplaySummary:
    """Sums and percentiles; failed requests are counted, their times are in no percentile."""
    good = [result for result in results if result.error is None]
    first = min((result.arrival_s for result in results), default=0.0)
    last = max((result.arrival_s + (result.e2e_s or 0.0) for result in good), default=first)
    wall_s = last - first
    output, prompt = sum(result.output_tokens for result in good), sum(result.prompt_tokens for result in good)
    per_s = 1 / wall_s if wall_s > 0 else 0.0
    return ReplaySummary(
        requests=len(results),
        failed=len(results) - len(good),
        prompt_tokens=prompt,
        output_tokens=output,
        wall_s=wall_s,
        output_tokens_per_s=output * per_s,
        total_tokens_per_s=(output + prompt) * per_s,
        requests_per_s=len(good) * per_s,
        ttft_s=spread([result.ttft_s for result in good]),
        tpot_s=spread([result.tpot_s for result in good]),
        itl_s=spread([gap for result in good for gap in result.gaps_s]),
        e2e_s=spread([result.e2e_s for result in good]),
        preemptions=sum(result.preemptions for result in good),
        late_s=late_s,
        is_void=wall_s > 0 and late_s > FALLEN_BEHIND * wall_s and any(result.arrival_s > 0 for result in results),
    )


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the values that are there; None when there is none."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    p50, p90, p99 = (known[max(0, -(-share * len(known) // 100) - 1)] for share in PERCENTILES)
    return Spread(len(known), sum(known) / len(known), p50, p90, p99, len(known) < FEW)

"""Workloads: what requests come when, run against an engine, and what each one waited for (A23-A25).

Open loop: a request's clock starts at its own arrival time, whether or not the engine was ready for it, so nothing is
hidden by coordinated omission. Greedy, and past the end of text, so that every engine does the same work.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from ridgeline.engine.client import EngineClient
from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

Encode = Callable[[str], Sequence[int]]
LATEST_S = 86_400.0


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a workload file. Exactly one of prompt and prompt_ids."""

    output_tokens: int
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    arrival_s: float = 0.0
    priority: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """One request, seconds from its arrival. tpot_s: None for a single token. gaps_s: between output tokens (ITL)."""

    ids: tuple[int, ...]
    prompt_tokens: int
    arrival_s: float
    ttft_s: float
    tpot_s: float | None
    e2e_s: float
    preemptions: int
    gaps_s: tuple[float, ...] = ()


class Summary(msgspec.Struct, frozen=True):
    """Over requests, except itl (over gaps). wall_s: first arrival to last token."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    wall_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    itl_p99_s: float
    e2e_p50_s: float
    e2e_p99_s: float
    preemptions: int


def read_workload(path: Path, encode: Encode) -> list[Job]:
    """JSON lines -> jobs with ids. UserError names the line that is wrong."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the workload {path}: {error}.") from error
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            job = msgspec.json.decode(line, type=Job)
        except msgspec.DecodeError as error:
            raise UserError(f"{path}, line {number}: {error}.") from error
        jobs.append(_checked(job, f"{path}, line {number}", encode))
    if not jobs:
        raise UserError(f"{path} holds no request; write one JSON object a line.")
    return jobs


def _checked(job: Job, where: str, encode: Encode) -> Job:
    if (job.prompt is None) == (job.prompt_ids is None):
        raise UserError(f"{where}: give either prompt or prompt_ids.")
    if job.output_tokens < 1:
        raise UserError(f"{where}: output_tokens is {job.output_tokens}; it must be at least 1.")
    if not 0.0 <= job.arrival_s <= LATEST_S:
        raise UserError(f"{where}: arrival_s is {job.arrival_s}; it must be in [0, {LATEST_S:.0f}].")
    if job.prompt is None:
        return job
    return msgspec.structs.replace(job, prompt=None, prompt_ids=tuple(encode(job.prompt)))


def requests_of(jobs: Sequence[Job], prefix: str = "job") -> list[Request]:
    """Greedy requests that ignore the end of text; arrival_s stays relative."""
    return [
        Request(
            f"{prefix}-{i}", job.prompt_ids or (), job.output_tokens, ignore_stop=True, priority=job.priority,
            arrival_s=job.arrival_s,
        )
        for i, job in enumerate(jobs)
    ]  # fmt: skip


def run_workload(
    client: EngineClient, jobs: Sequence[Job], progress: Callable[[int], None] = lambda tokens: None
) -> list[Outcome]:
    """Send every job at its time and wait for all; progress is told of new tokens."""
    requests = sorted(requests_of(jobs, f"job-{time.monotonic_ns()}"), key=lambda request: request.arrival_s or 0.0)
    events: queue.SimpleQueue[TokenEvent | RidgelineError] = queue.SimpleQueue()
    seen: dict[str, list[TokenEvent]] = {request.id: [] for request in requests}
    start = time.perf_counter()
    sent = done = 0
    try:
        while done < len(requests):
            while sent < len(requests) and start + (requests[sent].arrival_s or 0.0) <= time.perf_counter():
                arrival = start + (requests[sent].arrival_s or 0.0)
                client.submit_to(msgspec.structs.replace(requests[sent], arrival_s=arrival), events.put)
                sent += 1
            due = start + (requests[sent].arrival_s or 0.0) - time.perf_counter() if sent < len(requests) else None
            try:
                event = events.get(timeout=None if due is None else max(due, 0.0))
            except queue.Empty:
                continue
            if isinstance(event, RidgelineError):
                raise event
            seen[event.request].append(event)
            progress(len(event.tokens))
            done += event.finish is not None
    except BaseException:
        for request in requests[:sent]:
            client.cancel(request.id)
        raise
    return [outcome_of(request, seen[request.id], start + (request.arrival_s or 0.0)) for request in requests]


def outcome_of(request: Request, events: Sequence[TokenEvent], arrival_s: float) -> Outcome:
    """What one request lived through; arrival_s on the engine's clock."""
    at = [event.at_s for event in events for _ in event.tokens]
    ids = tuple(token for event in events for token in event.tokens)
    tpot = (at[-1] - at[0]) / (len(at) - 1) if len(at) > 1 else None
    return Outcome(
        ids, len(request.prompt), request.arrival_s or 0.0, at[0] - arrival_s, tpot, at[-1] - arrival_s,
        events[-1].preemptions, tuple(b - a for a, b in zip(at, at[1:], strict=False)),
    )  # fmt: skip


def summarise_outcomes(outcomes: Sequence[Outcome]) -> Summary:
    """Definitions: docs/words.md (TTFT, TPOT, ITL, E2E)."""
    begin = min(outcome.arrival_s for outcome in outcomes)
    wall = max(outcome.arrival_s + outcome.e2e_s for outcome in outcomes) - begin
    prompt = sum(outcome.prompt_tokens for outcome in outcomes)
    output = sum(len(outcome.ids) for outcome in outcomes)
    ttft = [outcome.ttft_s for outcome in outcomes]
    tpot = [outcome.tpot_s for outcome in outcomes if outcome.tpot_s is not None] or [0.0]
    gaps = [gap for outcome in outcomes for gap in outcome.gaps_s] or [0.0]
    e2e = [outcome.e2e_s for outcome in outcomes]
    point = lambda values, share: float(np.percentile(values, share))  # noqa: E731  six uses below
    return Summary(
        len(outcomes), prompt, output, wall, output / wall, (prompt + output) / wall, len(outcomes) / wall,
        point(ttft, 50), point(ttft, 99), point(tpot, 50), point(tpot, 99), point(gaps, 99),
        point(e2e, 50), point(e2e, 99), sum(outcome.preemptions for outcome in outcomes),
    )  # fmt: skip

"""What each place's figures should be: the same schedulers on a virtual clock. Used by placement.py."""

from __future__ import annotations

import itertools

import msgspec

from ridgeline.cluster.build import configs_of
from ridgeline.cluster.cluster import DECODE, PREFILL
from ridgeline.engine.build import rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import Place, make_place
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.replay import rehearse_replay
from ridgeline.perf.workload import Job
from ridgeline.run.machine import load_or_measure
from ridgeline.state.request import Request
from ridgeline.state.transfer import Parcel

SHM_BYTES_PER_S = 1.5e9  # assumed of an unthrottled link: two copies and two checksums of a shared core


class Times(msgspec.Struct, frozen=True):
    """One run: seconds by request (ttft, tpot), gaps of all answers, and from the first arrival to the last token."""

    wall_s: float
    output_tokens: int
    ttft_s: list[float]
    tpot_s: list[float | None]
    gaps_s: list[float]
    failed: int = 0


def predict(config: EngineConfig, jobs: list[Job]) -> Times:
    place = make_place(config.place)
    if place.is_apart:
        return _predict_apart(config, place, jobs)
    clock = VirtualClock()
    found = rehearse_replay(rehearse(config, load_or_measure(config.threads or 2), clock), clock, jobs)
    return Times(
        found.summary.wall_s, found.summary.output_tokens, [one.ttft_s or 0.0 for one in found.requests],
        [one.tpot_s for one in found.requests], [gap for one in found.requests for gap in one.gaps_s],
        found.summary.failed,
    )  # fmt: skip


def _predict_apart(config: EngineConfig, place: Place, jobs: list[Job]) -> Times:
    """First all prompts on one rehearsed engine, then everything else on another: nothing goes back between them. Each
    as if it had the machine's bandwidth to itself."""
    parts = configs_of(config, place)
    firsts = _rehearsed(parts[PREFILL], [(job.arrival_s, job, ()) for job in jobs], hands_on=True)
    first = [times[0] for times in firsts]
    program = record(describe(config.model), STORAGES.get(config.storage))
    per_token = sum(group.bytes_per_token for group in program.kv_groups)
    rate = place.rate or SHM_BYTES_PER_S
    arrivals = sorted(
        (first[index] + len(job.prompt) * per_token / rate, index)
        for index, job in enumerate(jobs)
        if job.output_tokens > 1
    )
    rest = _rehearsed(parts[DECODE], [(at, jobs[index], (0,)) for at, index in arrivals])
    times = {index: [first[index], *later] for (_, index), later in zip(arrivals, rest, strict=True)}
    return Times(
        max(max(times[index][-1] if index in times else first[index] for index in range(len(jobs))), 0.0)
        - jobs[0].arrival_s,
        sum(job.output_tokens for job in jobs),
        [first[index] - job.arrival_s for index, job in enumerate(jobs)],
        [
            (times[index][-1] - first[index]) / (job.output_tokens - 1) if index in times else None
            for index, job in enumerate(jobs)
        ],
        [b - a for one in times.values() for a, b in itertools.pairwise(one)],
    )


def _rehearsed(
    config: EngineConfig, asked: list[tuple[float, Job, tuple[int, ...]]], hands_on: bool = False
) -> list[list[float]]:
    """Times of the events of everything asked, on one engine of its own threads' machine."""
    clock = VirtualClock()
    engine = rehearse(config, load_or_measure(config.threads or 1), clock)
    times: list[list[float]] = [[] for _ in asked]
    sent = 0
    while sent < len(asked) or engine.has_work:
        if not engine.has_work and asked[sent][0] > clock.now():
            clock.advance(asked[sent][0] - clock.now())
        while sent < len(asked) and asked[sent][0] <= clock.now() + 1e-12:
            at, job, known = asked[sent]
            parcel = Parcel(1 << 40, len(job.prompt)) if known else None
            request = Request(str(sent), job.prompt, job.output_tokens, ignore_stop=True, arrival_s=at)
            engine.add(request, known=known, parcel=parcel, hands_on=hands_on)
            sent += 1
        for event in engine.step():
            times[int(event.request)].append(event.at_s)
            if hands_on:
                engine.scheduler.let_go(event.request)
    return times

"""What a place's figures should be on a workload: the same schedulers on virtual clocks, one an engine.

Engines apart are each predicted as if they had the machine's bandwidth to themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec

from ridgeline.cluster.build import LINK_BYTES_PER_S, configs_of
from ridgeline.cluster.cluster import DECODE, PREFILL
from ridgeline.engine.build import rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.place import Place, make_place
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.perf.replay import rehearse_replay
from ridgeline.perf.workload import Job
from ridgeline.run.machine import Machine, load_or_measure, usable_cores
from ridgeline.state.request import Request
from ridgeline.state.transfer import Parcel

MachineOf = Callable[[int], Machine]  # threads -> ceilings


class Times(msgspec.Struct, frozen=True):
    """One run: seconds by request (ttft, tpot), gaps of all answers, and from the first arrival to the last token."""

    wall_s: float
    output_tokens: int
    ttft_s: list[float]
    tpot_s: list[float | None]
    gaps_s: list[float]
    failed: int = 0


def slower(machine: Machine, pace: float) -> Machine:
    """The same machine in a moment in which everything takes `pace` times as long."""
    change = msgspec.structs.replace
    rates = {
        key: change(rate, seconds=tuple(pace * s for s in rate.seconds), bytes_per_s=rate.bytes_per_s / pace)
        for key, rate in machine.rates.items()
    }
    return change(
        machine, rates=rates, reads=tuple(change(read, bytes_per_s=read.bytes_per_s / pace) for read in machine.reads),
        flops_per_s={kind: peak / pace for kind, peak in machine.flops_per_s.items()}, host_s=pace * machine.host_s,
        barrier_s=pace * machine.barrier_s,
    )  # fmt: skip


def predict(config: EngineConfig, jobs: Sequence[Job], machine_of: MachineOf = load_or_measure) -> Times:
    """UserError where the place cannot be combined with the rest of the config."""
    config.check()
    place = make_place(config.place)
    if place.is_apart:
        return _predict_apart(config, place, jobs, machine_of)
    clock = VirtualClock()
    found = rehearse_replay(rehearse(config, machine_of(config.threads or usable_cores()), clock), clock, jobs)
    return Times(
        found.summary.wall_s, found.summary.output_tokens, [one.ttft_s or 0.0 for one in found.requests],
        [one.tpot_s for one in found.requests], [gap for one in found.requests for gap in one.gaps_s],
        found.summary.failed,
    )  # fmt: skip


def _predict_apart(config: EngineConfig, place: Place, jobs: Sequence[Job], machine_of: MachineOf) -> Times:
    """First all prompts on one rehearsed engine, then everything else on another: nothing goes back between them."""
    parts = configs_of(config, place)
    firsts = _rehearsed(parts[PREFILL], machine_of, [(job.arrival_s, job, ()) for job in jobs], hands_on=True)
    first = [times[0] for times in firsts]
    program = record(describe(config.model), STORAGES.get(config.storage))
    per_token = sum(group.bytes_per_token for group in program.kv_groups)
    rate = place.rate or LINK_BYTES_PER_S
    arrivals = sorted(
        (first[index] + len(job.prompt) * per_token / rate, index)
        for index, job in enumerate(jobs)
        if job.output_tokens > 1
    )
    rest = _rehearsed(parts[DECODE], machine_of, [(at, jobs[index], (0,)) for at, index in arrivals])
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
    config: EngineConfig, machine_of: MachineOf, asked: list[tuple[float, Job, tuple[int, ...]]], hands_on: bool = False
) -> list[list[float]]:
    """Times of the events of everything asked, on one engine of its own threads' machine."""
    clock = VirtualClock()
    engine = rehearse(config, machine_of(config.threads or 1), clock)
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

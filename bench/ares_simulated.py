"""ARES/STAR on virtual clocks: decode engines whose scheduler, memory, router and rescheduler are the real ones, asked
for answers as long as those `ridgeline learn` kept. Used by ares.py.
"""
# size: a regime is drawn, and a row run, by what tells it from the others

from __future__ import annotations

import argparse
import heapq
import itertools
import statistics
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from ridgeline.cluster.balance import Balance
from ridgeline.cluster.build import LINK_BYTES_PER_S, step_line
from ridgeline.cluster.journey import Journey
from ridgeline.cluster.reschedule import MoveCost, Rescheduler, Rules
from ridgeline.cluster.router import LeastRouter, RoundRouter, Router
from ridgeline.engine.build import rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.engine.place import make_place
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import Fingerprint, Machine, ReadRate
from ridgeline.schedule.predict.answers import Answers, read_answers
from ridgeline.schedule.predict.fit import predictions
from ridgeline.schedule.predict.mlp import Mlp, lengths_file, load_predictor
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import Parcel

Json = dict[str, Any]
ROWS = (  # who gets a request, who moves
    ("static", "round", "none"),
    ("load at dispatch", "least", "none"),
    ("moved by load", "round", "load"),
    ("moved by mlp", "round", "predict"),
    ("moved by oracle", "round", "oracle"),
)
KV_BYTES = 23_040  # of a token of SmolLM2-135M in bf16
CORE = Machine(  # one core of a small server, in round numbers: the simulation is the same on every machine
    Fingerprint("round", 1, (), 0, "", ""), 1, (ReadRate(1, 1 << 28, 1.3e10, 1.3e10),),
    {"f32": 1.5e11, "int8": 6e11}, 1e-6, "",
)  # fmt: skip


# -- requests whose lengths are those of real answers


class Asked(msgspec.Struct, frozen=True):
    """guesses: predicted output tokens in the end, after 0, every, 2 every ... tokens."""

    name: str
    arrival_s: float
    prompt: int
    output: int
    guesses: tuple[float, ...]
    home: int = 0  # of whoever is sent to a fixed engine


def made(answers: Answers, network: Mlp, every: int, count: int, rate: float, seed: int, kind: str) -> list[Asked]:
    """From the test part, drawn with replacement. kind: heavy (as they are), skewed (half of them have the same home),
    alike (all have the median length, and come evenly)."""
    random = np.random.default_rng(seed)
    owners = np.unique(answers.request[answers.looks("test")])
    guessed = predictions(answers, network)["mlp"] + answers.at
    looks = {int(owner): np.flatnonzero(answers.request == owner) for owner in owners}
    chosen = random.choice(owners, count)
    arrivals = np.cumsum(random.exponential(1 / rate, count))
    asked = []
    for number, owner in enumerate(chosen):
        output = int(answers.lengths[owner])
        guesses = tuple(float(guess) for guess in guessed[looks[int(owner)]])
        prompt, home = int(answers.prompt_tokens[owner]), number
        if kind == "alike":
            output, prompt = int(np.median(answers.lengths[owners])), 40
            guesses, arrivals[number] = (float(output),), (number + 1) / rate
        if kind == "skewed":
            home = 0 if random.random() < 0.5 else number
        asked.append(Asked(str(number), float(arrivals[number]), prompt, max(output, 2), guesses, home))
    del every
    return asked


class RecordedRefiner:
    """Says what the network said of the same answer after as many tokens."""

    def __init__(self, asked: list[Asked], every: int) -> None:
        self.every = every
        self._asked = {one.name: one for one in asked}

    def length(self, sequence: Sequence, hidden: Any) -> float:
        guesses = self._asked[sequence.request.id].guesses
        return guesses[min(sequence.tokens_output // self.every, len(guesses) - 1)]


class HomeRouter:
    """Skewed traffic, as from an affinity that many share: every request has a home."""

    def __init__(self) -> None:
        self.home = 0

    def choose(self, loads: Any) -> str:
        return list(loads)[self.home % len(loads)]


# -- simulated


@dataclass
class Site:
    engine: Engine
    clock: VirtualClock
    moving: dict[str, float] = field(default_factory=dict)  # requests that leave, and when their blocks have travelled


class SimulatedCluster:
    """Decode engines on virtual clocks: their scheduler, memory, router and rescheduler are the real ones; a step takes
    its estimated time, a move its bytes over the link. Prompts are computed elsewhere."""

    def __init__(
        self, config: EngineConfig, engines: int, router: Router, balance: Balance | None, refiner: Any
    ) -> None:
        self.sites: dict[str, Site] = {}
        for number in range(engines):
            clock = VirtualClock()
            engine = rehearse(config, CORE, clock, refiner=refiner)
            self.sites[f"decode-{number}"] = Site(engine, clock)
        facts = next(iter(self.sites.values())).engine.facts
        self.capacities = dict.fromkeys(self.sites, facts.kv_blocks * facts.block_tokens)
        self.router, self.balance = router, balance
        self.journeys: dict[str, Journey] = {}
        self.times: dict[str, list[float]] = {}
        self.moves = 0
        self._coming: list[tuple[float, int, str, str]] = []  # when, -, request, where
        self._order = itertools.count()
        self._keys = itertools.count(1 << 40, 1 << 20)

    def run(self, asked: list[Asked]) -> None:
        waiting = sorted(asked, key=lambda one: one.arrival_s)
        sent = 0
        while sent < len(waiting) or self.journeys:
            busy = {name: site for name, site in self.sites.items() if site.engine.has_work}
            at = min((site.clock.now() for site in busy.values()), default=float("inf"))
            if sent < len(waiting) and waiting[sent].arrival_s <= min(at, self._next_coming()):
                self._arrive(waiting[sent])
                sent += 1
            elif self._coming and self._next_coming() <= at:
                self._enter(heapq.heappop(self._coming))
            else:
                name = min(busy, key=lambda name: busy[name].clock.now())
                self._step(name, busy[name])
        for site in self.sites.values():
            site.engine.check()

    def _next_coming(self) -> float:
        return self._coming[0][0] if self._coming else float("inf")

    def _arrive(self, one: Asked) -> None:
        loads = dict.fromkeys(self.sites, 0)
        for journey in self.journeys.values():
            loads[journey.target or journey.decode] += journey.load()
        if isinstance(self.router, HomeRouter):
            self.router.home = one.home
        name = self.router.choose(loads)
        request = Request(one.name, (0,) * one.prompt, one.output, ignore_stop=True, arrival_s=one.arrival_s)
        journey = self.journeys[one.name] = Journey(request, lambda event: None, known=[0], decode=name, has_left=True)
        journey._has_first = True
        self.times[one.name] = [one.arrival_s]
        heapq.heappush(self._coming, (one.arrival_s, next(self._order), one.name, name))

    def _enter(self, coming: tuple[float, int, str, str]) -> None:
        """All state there is, is there; the next token is made here."""
        at, _, name, where = coming
        site, journey = self.sites[where], self.journeys[name]
        if site.clock.now() < at:
            site.clock.advance(at - site.clock.now())
        parcel = Parcel(next(self._keys), len(journey.request.prompt) + len(journey.known) - 1)
        site.engine.add(journey.request, known=tuple(journey.known), parcel=parcel)

    def _step(self, name: str, site: Site) -> None:
        now = site.clock.now()
        for request, ready_s in site.moving.items():
            if ready_s <= now:
                site.engine.scheduler.hand_on(request, True)
        for event in site.engine.step():
            journey = self.journeys[event.request]
            journey.take(event, name)
            self.times[event.request] += [event.at_s] * len(event.tokens)
            if event.finish is not None:
                site.moving.pop(event.request, None)
                del self.journeys[event.request]
            elif site.engine.scheduler.has_parted(event.request):
                self._part(site, journey, event.at_s)
            if event.tokens and self.balance is not None:
                for move in self.balance.look(self.journeys.values(), self.capacities):
                    self._move(move.name, move.source, move.target, event.at_s)

    def _move(self, name: str, source: str, target: str, now: float) -> None:
        journey = self.journeys[name]
        journey.move_to(target, 0)
        self.sites[source].moving[name] = now + self._cost(journey.load())

    def _part(self, site: Site, journey: Journey, now: float) -> None:
        """The last block travels while the stream stands still."""
        name = journey.request.id
        site.engine.scheduler.let_go(name)
        del site.moving[name]
        journey.decode, journey.target, journey.since = journey.target, "", len(journey.known)
        self.moves += 1
        heapq.heappush(self._coming, (now + self._cost(16), next(self._order), name, journey.decode))

    def _cost(self, tokens: int) -> float:
        assert self.balance is not None
        cost = self.balance.rescheduler.cost
        return tokens * cost.bytes_per_token / cost.bytes_per_s


def simulated_balance(config: EngineConfig, moves: str, link: str) -> Balance | None:
    """As cluster.build.balance_of, on CORE."""
    place = make_place(f"disaggregated:engines=1+2,rebalance={moves}{link}")
    if moves == "none":
        return None
    program = record(describe(config.model), STORAGES.get(config.storage))
    step = step_line(Estimator(program, CORE), program)
    cost = MoveCost(KV_BYTES, place.rate or LINK_BYTES_PER_S, fixed_s=step.fixed_s)
    return Balance(moves, Rescheduler(step, cost, Rules(every=place.every)))


def tpots(times: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """(seconds per output token of every request, all gaps)."""
    each = [(one[-1] - one[0]) / (len(one) - 1) for one in times.values() if len(one) > 1]
    return each, [float(gap) for one in times.values() for gap in np.diff(one)]


def ms(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) * 1e3


def simulate(model: str, given: argparse.Namespace, link: str) -> Json:
    engines, count, seeds = given.engines, given.requests, given.seeds
    name, width = describe(model).spec.name, describe(model).spec.width
    answers, refiner = read_answers(lengths_file(name, "answers")), load_predictor(name, width)
    config = EngineConfig(model, threads=1, context=1024, max_sequences=48, kv_bytes=48 * 700 * 23_040)
    line = simulated_balance(config, "load", link)
    assert line is not None
    step = line.rescheduler.step
    parts = (step.fixed_s * 1e3, step.sequence_s * 1e3, step.token_s * 1e6)
    print("a step: {:.2f} ms + {:.3f} ms a sequence + {:.3f} us a token".format(*parts))
    found: list[Json] = []
    for kind in ("heavy", "skewed", "alike"):
        mean = float(np.mean(answers.lengths[np.unique(answers.request[answers.looks("test")])]))
        rate = _rate(step, mean, engines, 0.5 if kind != "skewed" else 0.35)
        rows: dict[str, list[Json]] = {label: [] for label, _, _ in ROWS}
        for seed in range(seeds):
            asked = made(answers, refiner.network, refiner.every, count, rate, seed, kind)
            for label, route, moves in ROWS:
                rows[label].append(_simulated(config, engines, asked, route, moves, kind, link, refiner.every))
        for label, runs in rows.items():
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            found.append({"regime": kind, "row": label, "rate": rate, **middle, "runs": runs})
            print(
                f"{kind:7} {label:28} TPOT p50 {middle['tpot_p50_ms']:7.1f}  p99 {middle['tpot_p99_ms']:7.1f}  gap p99 "
                f"{middle['gap_p99_ms']:7.1f} ms  moves {middle['moves']:5.0f}  preempted {middle['preemptions']:4.0f}",
                flush=True,
            )
    return {
        "engines": engines,
        "requests": count,
        "link": link,
        "kv_tokens": given.kv_tokens,
        "step": msgspec.to_builtins(step),
        "rows": found,
    }


def _rate(step: Any, output: float, engines: int, load: float) -> float:
    """Requests a second at which engines with 24 sequences of 250 tokens each would be this busy."""
    sequences = 24
    seconds = step.seconds(sequences, sequences * 250)
    return load * engines * sequences / (output * seconds)


def _simulated(
    config: EngineConfig, engines: int, asked: list[Asked], route: str, moves: str, kind: str, link: str, every: int
) -> Json:
    router: Router = RoundRouter() if route == "round" else LeastRouter()
    if route == "round" and kind == "skewed":
        router = HomeRouter()
    cluster = SimulatedCluster(
        config, engines, router, simulated_balance(config, moves, link), RecordedRefiner(asked, every)
    )
    cluster.run(asked)
    each, gaps = tpots(cluster.times)
    return {
        "tpot_p50_ms": ms(each, 50), "tpot_p99_ms": ms(each, 99), "gap_p99_ms": ms(gaps, 99), "moves": cluster.moves,
        "preemptions": sum(site.engine.scheduler.preemptions for site in cluster.sites.values()),
        "wall_s": max(one[-1] for one in cluster.times.values()),
    }  # fmt: skip

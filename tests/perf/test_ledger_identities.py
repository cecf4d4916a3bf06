"""The identities of EXPLAIN §3 over random schedules: the real scheduler and memory on a virtual clock, with aborts,
preemption, kept state that comes back, guessing ahead, and a host that takes its time; against a brute-force diary."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ridgeline.engine.build import rehearse
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.kit.clock import VirtualClock
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.perf.account import Account, StepTable
from ridgeline.perf.attribution import Attribution
from ridgeline.perf.intervals import to_ns
from ridgeline.perf.ledger import RunLedger, make_ledger, step_ledger
from ridgeline.run.count import total
from ridgeline.state.request import Request

from ..engine.tiny import LLAMA
from .conftest import record, round_machine

BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 2  # keys and values, layers, heads, dim, tokens, bytes
MACHINE = round_machine(1e9, 1e10)
DOING = ("prefill", "decode", "draft", "verify", "recompute", "restore")
QUEUE = ("queue_untried", "queue_blocked_budget", "queue_blocked_blocks", "queue_blocked_policy")


class TimedLines:
    """A runner whose model lines take random parts of the step, some of it outside native calls."""

    def __init__(self, inner: Any, lines: int, seed: int) -> None:
        self.inner, self.lines, self.random = inner, lines, np.random.default_rng(seed)

    def submit(self, plan):
        return self.inner.submit(plan)

    def collect(self, ticket):
        result = self.inner.collect(ticket)
        inside = to_ns(result.ended_s) - to_ns(result.started_s) - result.transfer_ns
        native = int(inside * self.random.uniform(0.7, 1.0))
        parts = self.random.dirichlet(np.ones(self.lines + 1)) * native
        return msgspec.structs.replace(result, line_ns=parts[:-1].astype(np.int64), native_calls=1, native_ns=native)


@dataclass
class Diary:
    """Brute force: after every step, what everybody was doing, asked of the scheduler itself."""

    engine: Engine
    wall: dict[str, dict[str, int]] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)  # what the time until the next step is
    last_ns: int = 0

    def spend(self, name: str, what: str, begin: int, end: int) -> None:
        begin = max(begin, self.arrived[name])
        mine = self.wall.setdefault(name, {})
        mine[what] = mine.get(what, 0) + max(0, end - begin)

    def observe(self, plan, result) -> None:
        scheduler = self.engine.scheduler
        began, ended = to_ns(result.started_s), to_ns(result.ended_s)
        planned = {entry.sequence for entry in plan.entries}
        for sequence in (*scheduler._waiting, *scheduler._running):
            name = sequence.request.id
            if sequence in scheduler._running:
                what = "doing" if sequence.id in planned else "wait_in_batch"
            else:
                what = "preempted" if sequence.preemptions else "queue"
            since = self.last_ns if name in self.before else 0  # it may have come while the last step ran
            self.spend(name, self.before.get(name, "queue"), since, began)
            self.spend(name, what, began, ended)
            self.before[name] = "engine_gap" if what in ("doing", "wait_in_batch") else what
        self.last_ns = ended

    def end(self, name: str, at_s: float) -> None:
        self.ended[name] = to_ns(at_s)
        since = self.last_ns if name in self.before else 0
        self.spend(name, self.before.get(name, "queue"), since, self.ended[name])


class Watching:
    """The account and the diary see every step."""

    def __init__(self, account: Account) -> None:
        self.account, self.diary = account, None
        self.sequences: dict[str, Any] = {}

    def on_step(self, plan, result) -> None:
        self.account.on_step(plan, result)
        self.diary.observe(plan, result)

    def on_finish(self, sequence, reason, at_s) -> None:
        self.sequences[sequence.request.id] = sequence
        self.account.on_finish(sequence, reason, at_s)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("tiny") / "config.json"
    path.write_text(json.dumps(LLAMA))
    return f"random:{path}"


KINDS: tuple[dict[str, Any], ...] = (
    {}, {"spec": "ngram:k=3,adapt=off"}, {"spec": "draft:MODEL,k=3,adapt=off"}, {"host_kv_bytes": 40 * BLOCK_BYTES},
    {"policy": "shortest"}, {"cache": False, "max_sequences": 3}, {"batching": "static", "max_sequences": 2},
)  # fmt: skip

asked = st.tuples(
    st.integers(1, 70),
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(0, 3),
    st.sampled_from((None, None, 1, 4, 9)),
)  # prompt, output, the step before which it comes, whose beginning it has, steps after which it is cancelled


@dataclass
class Ran:
    table: StepTable
    ledger: RunLedger
    watching: Watching
    diary: Diary
    program: Program
    reports: list[tuple[int, int, int]] = field(default_factory=list)


def live(model: str, kind: dict[str, Any], blocks: int, requests: list[tuple], seed: int) -> Ran:
    clock, account_of = VirtualClock(1.0), random.Random(seed)
    options = {key: value.replace("MODEL", model) if key == "spec" else value for key, value in kind.items()}
    config = EngineConfig(
        model, **{"kv_bytes": blocks * BLOCK_BYTES, "context": 112, "step_tokens": 48, "max_sequences": 5, **options}
    )
    program = None
    watching = Watching(Account())
    engine = rehearse(config, MACHINE, clock, acceptance=0.6, observer=watching)
    program = getattr(engine.runner, "runners", {"model": engine.runner})["model"]._estimator.program
    watching.account = Account(program.reaches, tuple(line.part for line in program))
    if hasattr(engine.runner, "runners"):
        inner = engine.runner.runners
        inner.update({name: TimedLines(one, len(one._estimator.program.lines), seed) for name, one in inner.items()})
    else:
        engine.runner = TimedLines(engine.runner, len(program.lines), seed)
    diary = watching.diary = Diary(engine)
    step, waiting = 0, sorted(enumerate(requests), key=lambda one: one[1][2])
    cancels: list[tuple[int, str]] = []
    while waiting or engine.has_work:
        while waiting and (waiting[0][1][2] <= step or not engine.has_work):
            number, (prompt, output, _, whose, cancelled) = waiting.pop(0)
            clock.advance(0.0 if engine.has_work else account_of.uniform(0, 1e-3))
            name, late_s = f"r{number}", account_of.uniform(0, 2e-4)
            tokens = tuple((whose * 31 + i * 7) % 300 + 3 for i in range(prompt))
            arrival_s = max(clock.now() - late_s, diary.last_ns * 1e-9 if not engine.has_work else 0.0)
            engine.add(Request(name, tokens, output, ignore_stop=True, arrival_s=arrival_s))
            diary.arrived[name] = to_ns(arrival_s)
            cancels += [] if cancelled is None else [(step + cancelled, name)]
        for _, name in [one for one in cancels if one[0] <= step]:
            event = engine.cancel(name)
            if event is not None:
                diary.end(name, event.at_s)
        cancels = [one for one in cancels if one[0] > step]
        clock.advance(account_of.uniform(1e-6, 3e-4))
        for event in engine.step():
            if event.finish is not None:
                diary.end(event.request, event.at_s)
        engine.check()
        step += 1
    table = watching.account.table()
    return Ran(table, make_ledger(table, None, program, MACHINE), watching, diary, program)


runs = st.tuples(
    st.sampled_from(range(len(KINDS))), st.sampled_from((8, 11, 40)), st.lists(asked, min_size=1, max_size=9),
    st.integers(0, 2**20),
)  # fmt: skip
few = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@few
@given(run=runs)
def test_every_identity_holds_on_every_schedule(model: str, run: tuple) -> None:
    kind, blocks, requests, seed = run
    ran = live(model, KINDS[kind], blocks, requests, seed)
    assert {one.request_id for one in ran.ledger.requests} == set(ran.diary.ended)
    check_walls(ran)
    check_steps(ran)
    check_tokens(ran)
    check_counts(ran)


def check_walls(ran: Ran) -> None:
    """1: intervals sum to E2E, nothing is residual, and they are what the diary says."""
    for one in ran.ledger.requests:
        whole = ran.diary.ended[one.request_id] - ran.diary.arrived[one.request_id]
        assert one.e2e_ns == sum(one.wall_ns.values()) == whole
        assert one.residual_ns <= 0.02 * one.e2e_ns
        found = {
            "doing": sum(one.wall_ns.get(name, 0) for name in DOING),
            "queue": sum(one.wall_ns.get(name, 0) for name in QUEUE),
            **{name: one.wall_ns.get(name, 0) for name in ("preempted", "wait_in_batch", "engine_gap")},
        }
        diary = {name: ran.diary.wall.get(one.request_id, {}).get(name, 0) for name in found}
        assert found == diary, one
    assert sum(ran.ledger.wall_ns.values()) == sum(one.e2e_ns for one in ran.ledger.requests)
    assert ran.ledger.residual_ns <= 0.005 * max(1, sum(one.e2e_ns for one in ran.ledger.requests))


def check_steps(ran: Ran) -> None:
    """2: operators + gaps + host = step, shares = step, steps + idle = engine time."""
    ledger, times = ran.ledger, ran.table.step_times()
    assert ledger.operators_ns + ledger.gaps_ns + ledger.host_ns == ledger.step_ns
    assert ledger.operators_ns == pytest.approx(
        ran.table.lines().sum() + sum(work.seconds for work in ran.table.others.values()) * 1e9
    )
    assert min(ledger.operators_ns, ledger.gaps_ns, ledger.host_ns, ledger.idle_ns) >= 0
    if len(times):
        assert ledger.step_ns + ledger.idle_ns == ledger.engine_ns == to_ns(times[-1, 1]) - to_ns(times[0, 0])
        assert ledger.idle_ns == pytest.approx(ran.table.idle_s * 1e9, abs=2 * len(times))
    assert sum(sum(one.cost_ns.values()) for one in ledger.requests) == ledger.step_ns
    for one in ledger.requests:
        assert one.cost_ns == {phase: sum(groups.values()) for phase, groups in one.costs.items()}
        assert all(spent >= 0 for groups in one.costs.values() for spent in groups.values())


def check_tokens(ran: Ran) -> None:
    """4: prompt = cached + computed for whoever got through its prompt; what was lost is counted apart."""
    for one in ran.ledger.requests:
        sequence = ran.watching.sequences[one.request_id]
        if one.output_tokens:
            assert one.prompt_tokens == one.cached_tokens + one.computed_tokens
        assert one.output_tokens == sequence.tokens_output
        rows = [row for row in ran.table.timeline.entry_rows().tolist() if row[1] == sequence.id]
        kept = [(row[3], row[5]) for row in rows if row[2] != 3]  # a draft program's positions are its own
        if kept and not sequence.preemptions:
            assert one.cached_tokens == sequence.tokens_cached
        positions = [position for start, end in kept for position in range(start, end)]
        assert one.recomputed_tokens == len(positions) - len(set(positions))
        assert one.computed_tokens == len({p for p in positions if p < one.prompt_tokens})


def check_counts(ran: Ran) -> None:
    """5: counted work of the run, phase by phase, is that of its steps."""
    if not len(ran.table.step_times()):
        return
    split = Attribution(ran.table, ran.program, MACHINE)
    rows = ran.table.timeline.entry_rows()
    rows = rows[rows[:, 2] != 3]
    whole = 0.0
    for step in np.unique(rows[:, 0]):
        mine = rows[rows[:, 0] == step]
        shape = BatchShape.of([(int(r[3]), int(r[4])) for r in mine], int(mine[:, 6].sum()), ran.program.reaches)
        whole += total(ran.program, shape).flops
    assert sum(phase.cost.flops for phase in split.phases) == pytest.approx(whole)


def test_everything_random_schedules_may_meet_does_occur(model: str) -> None:
    """The generator would prove little if none of its runs was hard."""
    seen: dict[str, int] = {}
    for seed in range(21):
        draw = random.Random(seed)
        requests = [
            (draw.randint(1, 40), draw.randint(1, 40), draw.randint(0, 12), draw.randint(0, 3), draw.choice((None, 4)))
            for _ in range(9)
        ]
        ran = live(model, KINDS[seed % len(KINDS)], (8, 11, 40)[seed % 3], requests, seed)
        for name, spent in ran.ledger.wall_ns.items():
            seen[name] = seen.get(name, 0) + spent
        seen["cancelled"] = seen.get("cancelled", 0) + sum(one.finish == "cancelled" for one in ran.ledger.requests)
        seen["cached"] = seen.get("cached", 0) + sum(one.cached_tokens for one in ran.ledger.requests)
        seen["idle"] = seen.get("idle", 0) + ran.ledger.idle_ns
    hard = (*QUEUE, *DOING, "preempted", "wait_in_batch", "engine_gap", "cancelled", "cached", "idle")
    assert not [name for name in hard if not seen.get(name)], seen


def test_attention_is_shared_by_its_counted_time_and_the_head_by_rows() -> None:
    """Two requests of one step: 30 new tokens and a row, beside 1 token after 30 and a row."""
    from .test_account import Story, entry

    program = record()
    story = Story(len(program.lines))
    story.account = Account(program.reaches, tuple(line.part for line in program))
    story.step(entry(1, 0, 30, True), line_ns=700)
    story.step(entry(1, 30, 1, True), entry(2, 0, 30, True), line_ns=1_000)
    for sequence in (1, 2):
        story.finish(sequence)
    table = story.account.table()
    ledger = make_ledger(table, None, program, round_machine())
    one, two = ledger.requests
    own, other = one.costs["decode"], two.costs["prefill"]
    assert own["qkv"] + other["qkv"] == 2_000 and own["qkv"] == round(2_000 / 31)
    assert own["head"] == other["head"] == 500
    shape = [BatchShape.of([pair], 1) for pair in ((30, 1), (0, 30))]
    attend = next(line for line in program if line.op.kind == "attend")
    seconds = [max(attend.cost(s).flops / 1e8, attend.cost(s).kv_bytes / 1e6) for s in shape]
    assert own["attend"] == pytest.approx(2_000 * seconds[0] / sum(seconds), abs=1)
    assert own["attend"] + other["attend"] == 2_000
    assert abs(own["gaps"] - other["gaps"]) <= 1  # equally over the entries; nothing native ran, so there is no host
    whole = step_ledger(table, table.timeline)
    assert sum(sum(one.cost_ns.values()) for one in ledger.requests) == int(whole.step.sum())

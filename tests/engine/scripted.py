"""ScriptedRunner: a model in thirty lines. Its paged "KV" is a hash of all tokens so far, so a lost, shared or stale
block changes every later token; and it refuses plans that break the contract of state.plan.

Imports nothing of kernels, models or run: the engine cannot tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ridgeline.engine.engine import Engine, Unobserved
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.block_memory import BlockMemory
from ridgeline.memory.pool import BlockPool
from ridgeline.schedule.options import ScheduleOptions
from ridgeline.schedule.policy import Policy, make_policy
from ridgeline.schedule.scheduler import Scheduler
from ridgeline.state.event import TokenEvent
from ridgeline.state.messages import EngineFacts
from ridgeline.state.plan import Entry, LogitRow, RowResult, StepPlan, StepResult
from ridgeline.state.request import Request
from ridgeline.state.transfer import CopyBlock

BLOCK_TOKENS = 16
VOCABULARY = 97
CONTEXT = 256
MODULUS = (1 << 61) - 1
EMPTY = 1


def follow(state: int, token: int) -> int:
    """The state after one more token; depends on every token before it."""
    return (state * 1_000_003 + token + 7) % MODULUS


def next_token(state: int) -> int:
    return (state >> 13) % VOCABULARY


def logprob(state: int, token: int) -> float:
    return -1.0 - (state * 31 + token) % 1000 / 250.0


class Broken(Exception):
    """A plan that no runner should have been given."""


class ScriptedRunner:
    """Strict: starts where the sequence's computed tokens end, tables long enough, no block shared, limits kept.

    is_alone: no sequence begins with what another has computed."""

    def __init__(self, blocks: int, options: ScheduleOptions, clock: VirtualClock, *, is_alone: bool = True) -> None:
        self.is_alone = is_alone
        self.states = np.zeros((blocks, BLOCK_TOKENS), np.int64)
        self.options, self.clock = options, clock
        self.computed: dict[int, int] = {}
        self.plans: list[StepPlan] = []
        self.keep_plans = False

    def submit(self, plan: StepPlan) -> StepResult:
        for move in plan.transfers:
            if not isinstance(move, CopyBlock):
                raise Broken(f"unexpected {move}")
            self.states[move.target] = self.states[move.source]
        self.check(plan)
        started = self.clock.now()
        self.clock.advance(0.001)
        rows = tuple(self.run(entry) for entry in plan.entries)
        if self.keep_plans:
            self.plans.append(plan)
        return StepResult(rows, started, self.clock.now())

    def collect(self, ticket: Any) -> StepResult:
        return ticket

    def run(self, entry: Entry) -> tuple[RowResult, ...]:
        state = EMPTY
        if entry.start:
            before = entry.start - 1
            state = int(self.states[entry.blocks[0][before // BLOCK_TOKENS], before % BLOCK_TOKENS])
        states = []
        for position, token in enumerate(entry.tokens, entry.start):
            state = follow(state, token)
            self.states[entry.blocks[0][position // BLOCK_TOKENS], position % BLOCK_TOKENS] = state
            states.append(state)
        self.computed[entry.sequence] = entry.start + len(entry.tokens)
        return tuple(self.answer(row, states[row.offset]) for row in entry.rows)

    def answer(self, row: LogitRow, state: int) -> RowResult:
        token = next_token(state) if row.target < 0 else row.target
        if row.logprobs < 0:
            return RowResult(token)
        return RowResult(token, logprob(state, token), token % 5, tuple((t, -1.0) for t in range(row.logprobs)))

    def check(self, plan: StepPlan) -> None:
        for sequence in plan.released:
            self.computed.pop(sequence, None)
        entries = plan.entries
        rows = sum(len(entry.rows) for entry in entries)
        if not entries or len({entry.sequence for entry in entries}) != len(entries):
            raise Broken("no entries, or one sequence twice")
        if plan.tokens > self.options.step_tokens or rows > self.options.step_logit_rows:
            raise Broken(f"{plan.tokens} tokens and {rows} rows are over the limits of {self.options}")
        if len(entries) > self.options.sequences:
            raise Broken(f"{len(entries)} sequences at a time")
        seen: set[int] = set()
        written: set[int] = set()
        for entry in entries:
            self.check_entry(entry)
            blocks = entry.blocks[0].tolist()
            own = set(blocks[entry.start // BLOCK_TOKENS : -(-(entry.start + len(entry.tokens)) // BLOCK_TOKENS)])
            if len(set(blocks)) != len(blocks) or (self.is_alone and set(blocks) & seen) or written & set(blocks):
                raise Broken("a block is shared")
            if own & seen:
                raise Broken("a block that others read is written")
            seen |= set(blocks)
            written |= own

    def check_entry(self, entry: Entry) -> None:
        computed = self.computed.get(entry.sequence, 0 if self.is_alone else entry.start)
        if entry.start != computed and (self.options.cache or entry.start):
            raise Broken(f"sequence {entry.sequence} starts at {entry.start}; {computed} are computed")
        if not entry.tokens or entry.start + len(entry.tokens) > CONTEXT:
            raise Broken("an entry without tokens, or past the context")
        if self.options.chunk is not None and len(entry.tokens) > self.options.chunk:
            raise Broken("an entry over the chunk size")
        if len(entry.blocks[0]) * BLOCK_TOKENS < entry.start + len(entry.tokens) or entry.blocks[0].dtype != np.int32:
            raise Broken("a block table that does not hold the entry")
        if any(block < 0 or block >= len(self.states) for block in entry.blocks[0].tolist()):
            raise Broken("a block that is none")
        if any(not 0 <= row.offset < len(entry.tokens) for row in entry.rows):
            raise Broken("a row outside its entry")
        if any(row.position != entry.start + row.offset + 1 for row in entry.rows):
            raise Broken("a row whose position is not the one after its token")


def scripted_engine(
    blocks: int = 64, *, contiguous: bool = False, observer: Any = None, policy: Policy | str = "fcfs",
    prefix: bool = False, **options: Any,
) -> Engine:  # fmt: skip
    """An Engine on the scripted model; `options` are ScheduleOptions."""
    clock = VirtualClock()
    chosen = ScheduleOptions(**options)
    is_alone = not prefix or contiguous or not chosen.cache
    memory = BlockMemory(
        BlockPool(blocks), context=CONTEXT, contiguous=contiguous, alone="off" if is_alone else "",
        waits=chosen.batching == "continuous",
    )  # fmt: skip
    observer = observer or Unobserved()
    policy = make_policy(policy) if isinstance(policy, str) else policy
    scheduler = Scheduler(memory, policy, chosen, context=CONTEXT, on_finish=observer.on_finish)
    facts = EngineFacts(
        model="scripted", name="scripted", family="scripted", is_random=True, vocabulary=VOCABULARY, context=CONTEXT,
        context_model=CONTEXT, kv_blocks=blocks,
    )  # fmt: skip
    runner = ScriptedRunner(blocks, chosen, clock, is_alone=is_alone)
    return Engine(scheduler, runner, facts=facts, clock=clock, observer=observer, close=lambda: None)


def alone(request: Request) -> tuple[tuple[int, ...], str]:
    """(ids, finish) that the scripted model gives this request, without any engine."""
    state = EMPTY
    for token in request.prompt:
        state = follow(state, token)
    ids: list[int] = []
    while len(ids) < request.max_tokens:
        token = next_token(state)
        state = follow(state, token)
        ids.append(token)
        if token in request.stop_ids and not request.ignore_stop:
            return tuple(ids), "stop"
        if len(request.prompt) + len(ids) >= CONTEXT:
            break
    return tuple(ids), "length"


def prompt_scores(request: Request) -> list[float]:
    """Log-probabilities of positions 1.. of the prompt."""
    state, scores = EMPTY, []
    for token, target in zip(request.prompt, request.prompt[1:], strict=False):
        state = follow(state, token)
        scores.append(logprob(state, target))
    return scores


def run_to_end(engine: Engine, *, check: bool = True, limit: int = 100_000) -> list[TokenEvent]:
    """Step until nothing is left; every step is followed by engine.check()."""
    events: list[TokenEvent] = []
    steps = 0
    while engine.has_work:
        events += engine.step()
        if check:
            engine.check()
        steps += 1
        if steps > limit:
            raise Broken(f"still running after {limit} steps")
    return events


def ids_of(events: list[TokenEvent]) -> dict[str, tuple[int, ...]]:
    """Output ids by request."""
    ids: dict[str, tuple[int, ...]] = {}
    for event in events:
        ids[event.request] = ids.get(event.request, ()) + event.tokens
    return ids

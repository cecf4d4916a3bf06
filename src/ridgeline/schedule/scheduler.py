"""The scheduling mechanism: gives token budget to whoever still has tokens to compute. Only writer of Sequence.

A running sequence holds blocks for every token it knows, so it needs at most one more block a step. When there is
none, the policy's victim starts over later, but never the sequence served first: so somebody always ends. What to
compute is the decoder's word; room for it is memory's. Refuses at add what could never fit.
"""

# size: 30 short methods; planning and committing share the queues, and only this class may write a Sequence

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

from ridgeline.decode.decoder import MODEL, PLAIN, Ask, Autoregressive, Decoder, Settled
from ridgeline.kit.errors import CapacityError, InvariantError, UserError
from ridgeline.state.event import HANDED_ON, Scored, TokenEvent
from ridgeline.state.plan import BLOCKS, BUDGET, POLICY, Entry, RowResult, SequenceId, StepPlan, StepResult
from ridgeline.state.ports import SequenceMemory, TokenRules
from ridgeline.state.request import Request
from ridgeline.state.sequence import Rank, Sequence
from ridgeline.state.transfer import Parcel, Transfer

from .constrain import constrained
from .options import ScheduleOptions
from .pace import Pace
from .policy import Policy
from .predict.refiner import UNSEEN, Seen, Sight
from .share import Placed, share, want
from .streams import ALL, Stream

OnFinish = Callable[[Sequence, str, float], None]


class Scheduler:
    """waiting and running are kept in the policy's order, as of its last review. plan and commit of a stream alternate;
    add and cancel come any time."""

    def __init__(
        self, memory: SequenceMemory, policy: Policy, options: ScheduleOptions, *, context: int,
        on_finish: OnFinish | None = None, decoder: Decoder | None = None,
        other_memory: Mapping[str, SequenceMemory] | None = None,
        rules: TokenRules | None = None,
    ) -> None:  # fmt: skip
        """memory: of the program "model". other_memory: of every other program the decoder runs. rules: None: requests
        that need some are refused."""
        options.check()
        self.memory, self.policy, self.options, self.context = memory, policy, options, context
        self.decoder: Decoder = decoder or Autoregressive()
        self.pace: Pace | None = None  # how many of step_tokens a step may have; set between steps
        self._memories: dict[str, SequenceMemory] = {**(other_memory or {}), MODEL: memory}
        if missing := set(self.decoder.programs) - set(self._memories):
            raise InvariantError(f"no memory for the program {', '.join(sorted(missing))}")
        self.preemptions = 0
        self.deferrals = 0  # times a sequence waited for another to compute their common beginning
        self.tokens_recomputed = 0  # lost by preemption, all requests together
        self.sight = Sight()  # its refiner predicts the lengths of those who run, where somebody wants that
        self._on_finish, self._rules = on_finish, rules
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._by_request: dict[str, Sequence] = {}
        self._parted: dict[str, Sequence] = {}  # others go on with them, and still read the blocks they have here
        self._in_flight: dict[str, tuple[StepPlan, list[Placed]]] = {}  # by stream
        self._busy: set[SequenceId] = set()  # a step computes them: nobody touches what they hold
        self._cancelled: dict[SequenceId, Sequence] = {}  # while a step computes them
        self._released: list[SequenceId] = []
        self._barred: set[SequenceId] = set()  # lost their blocks in this plan, so it does not let them in again
        self._slots_done = 0  # finished sequences of a static batch that still runs
        self._next_id = 0

    # -- in and out

    def add(
        self, request: Request, now: float, *, known: tuple[int, ...] = (), parcel: Parcel | None = None,
        hands_on: bool = False,
    ) -> None:  # fmt: skip
        """Queue a request. CapacityError when not even an empty pool could hold it; UserError for an id in use.

        known: output tokens it has already; parcel: what others computed of it; hands_on: it ends here with the next
        token and keeps its blocks until let_go."""
        if request.id in self._by_request or request.id in self._parted:
            raise UserError(f"request id {request.id!r} is already in use; give every request its own id.")
        if request.is_ruled and self._rules is None:
            raise UserError("this engine enforces no grammar and no min_tokens; leave them out.")
        most = request.tokens_most(self.context)
        if not self.memory.fits_ever(most):
            raise CapacityError(
                f"request {request.id!r} may need the KV of {most} tokens, more than the whole pool holds. "
                f"Ask for fewer tokens, or start with more --kv-bytes."
            )
        arrival_s = now if request.arrival_s is None else request.arrival_s
        tokens = [*request.prompt, *known]
        sequence = Sequence(self._next_id, request, arrival_s, tokens, parcel=parcel, hands_on=hands_on, entered_s=now)
        self._next_id += 1
        self._by_request[request.id] = sequence
        self.sight.begin(sequence)
        sequence.rank = self.policy.rank(sequence)
        insort(self._waiting, sequence, key=_rank)

    def cancel(self, request_id: str, now: float) -> TokenEvent | None:
        """End a request. Blocks are free at once and its last event is returned; when a step is computing it, both
        come with commit (None). None too for a request that is not here (any more)."""
        sequence = self._by_request.get(request_id)
        if sequence is None:
            return None
        if sequence.id in self._busy:
            self._cancelled[sequence.id] = sequence
            return None
        return self._finish(sequence, "cancelled", now)

    def find(self, request_id: str) -> Sequence | None:
        """The sequence of a request that is here, waiting, running or parted."""
        return self._by_request.get(request_id) or self._parted.get(request_id)

    def has_parted(self, request_id: str) -> bool:
        """Whether somebody else goes on with it while its blocks are still here."""
        return request_id in self._parted

    def hand_on(self, request_id: str, is_to: bool) -> None:
        """Whether a sequence that is here parts with its next token: others are to go on with it."""
        sequence = self._by_request.get(request_id)
        if sequence is not None:
            sequence.hands_on = is_to

    def let_go(self, request_id: str) -> None:
        """Nobody reads the blocks of a parted sequence any more."""
        sequence = self._parted.pop(request_id, None)
        if sequence is not None:
            self._release(sequence)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def here(self) -> tuple[tuple[Sequence, ...], tuple[Sequence, ...]]:
        """(running, waiting), each in the policy's order; to be read."""
        return tuple(self._running), tuple(self._waiting)

    @property
    def slots_held(self) -> int:
        """Running sequences, and in a static batch the places of those that have finished before the others."""
        return len(self._running) + self._slots_done

    # -- plan

    def plan(self, now: float, stream: Stream = ALL) -> StepPlan:
        """What the next step of a stream computes; empty when there is nothing to do."""
        if stream.name in self._in_flight:
            raise InvariantError("plan was called before the last plan was committed")
        self._barred.clear()
        if not self.policy.is_static and self.policy.review(self._waiting, self._running, now):
            self._sort()
        evicted, short = self._hold_known()
        held: list[tuple[SequenceId, str]] = []
        if self._waiting:
            if evicted or short:
                held.append((self._waiting[0].id, BLOCKS))
            else:
                self._admit(now, held)
        asks = self._asks(stream, short)
        tokens = self.options.step_tokens if self.pace is None else self.pace.budget(asks, now)
        placed = share(asks, self.options, self._memories, self.context, tokens)
        if not placed:
            return StepPlan(())
        if self._rules is not None:
            placed = constrained(placed, self._rules)
        transfers: tuple[Transfer, ...] = ()
        for memory in self._memories.values():
            transfers += memory.transfers()
        entries = tuple([one.entry for one in placed])
        plan = StepPlan(entries, tuple(self._released), transfers, tuple(held), self.options.takes_turns)
        self._released.clear()
        self._in_flight[stream.name] = (plan, placed)
        self._busy.update([one.sequence.id for one in placed])
        return plan

    def _sort(self) -> None:
        """Both queues by ranks that have moved."""
        for queue in (self._waiting, self._running):
            for sequence in queue:
                sequence.rank = self.policy.rank(sequence)
            queue.sort(key=_rank)

    def _hold_known(self) -> tuple[bool, set[SequenceId]]:
        """Blocks for every token the running sequences know, in order; whether somebody had to give theirs up, and who
        has too few and waits, because a step computes all who might."""
        evicted = False
        short: set[SequenceId] = set()
        index, running = 0, self._running
        while index < len(running):
            sequence = running[index]
            computed = sequence.tokens_computed
            if sequence.id in self._busy or self.memory.reserve(sequence, computed, len(sequence.tokens) - computed):
                index += 1
                continue
            candidates = [one for one in running[max(index, 1) :] if one.id not in self._busy]
            # never the one served first: it always finishes
            if not candidates and self._busy:
                short.add(sequence.id)
                index += 1
                continue
            if not candidates and not self._parted:
                raise InvariantError(f"request {sequence.request.id!r} has the pool to itself and does not fit")
            self._preempt(self.policy.victim(candidates) if candidates else sequence)
            evicted = True
        return evicted, short

    def _admit(self, now: float, held: list[tuple[SequenceId, str]]) -> None:
        """From waiting to running, in order, nobody skipped, while slots, tokens and blocks last. held: who was tried
        in vain, and why."""
        is_static = self.options.batching == "static"
        if is_static and self._running:
            held.append((self._waiting[0].id, POLICY))
            return
        place = 0
        while place < len(self._waiting):
            sequence = self._waiting[place]
            spare = self.options.step_tokens - sum(
                want(one, self.options) for one in self._running if not self.policy.passes(sequence, one)
            )
            if (spare <= 0 and not is_static) or sequence.id in self._barred:
                held.append((sequence.id, BUDGET if spare <= 0 else BLOCKS))
                return
            kept_out = self._enter(sequence, now)
            if kept_out is None:
                continue
            if kept_out == POLICY:
                held.append((sequence.id, POLICY))
                place += 1
            elif not (weaker := self._weaker(sequence)):
                held.append((sequence.id, kept_out))
                return
            else:
                self._preempt(self.policy.victim(weaker))

    def _weaker(self, newcomer: Sequence) -> list[Sequence]:
        """Who may be evicted for it."""
        return [one for one in self._running if one.id not in self._busy and self.policy.outranks(newcomer, one)]

    def _enter(self, sequence: Sequence, now: float) -> str | None:
        """Start running one of the waiting. Else what kept it out (and no change): no slot, no blocks, or POLICY when
        somebody who runs is just computing its beginning."""
        if len(self._running) >= self.options.sequences:
            return BUDGET
        cached = self.memory.admit(sequence)
        if cached is None:
            self.deferrals += 1
            return POLICY
        is_first = not self._running
        if not self.memory.reserve(sequence, cached, sequence.tokens_known - cached) or (
            not is_first and not self.memory.has_headroom(len(self._running))  # it would be evicted within a few steps
        ):
            self.memory.release(sequence, cached)
            return BLOCKS
        if sequence.parcel is not None:
            cached, sequence.parcel = self.memory.unpack(sequence, cached, sequence.parcel), None
        sequence.tokens_computed = sequence.tokens_cached = cached
        if sequence.preemptions:
            spared = min(cached, sequence.tokens_recomputed)
            sequence.tokens_recomputed -= spared
            self.tokens_recomputed -= spared
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_rank)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
        return None

    def _asks(self, stream: Stream, short: set[SequenceId]) -> list[tuple[Sequence, Ask]]:
        """What the decoder wants of this step and there is room for, in the policy's order."""
        wanted: list[tuple[Sequence, Ask]] = []
        running = self._running
        if stream is not ALL:
            running = [one for one in running if stream.takes(one) and one.id not in short]
        if not self.options.mixes:
            running = [one for one in running if one.tokens_to_compute > 1] or running
        for sequence, asks in zip(running, self.decoder.ask(running), strict=True):
            before = len(wanted)
            for ask in asks:
                if ask.program == MODEL or self._has_room(sequence, ask):
                    wanted.append((sequence, ask))
            if asks and len(wanted) == before:
                wanted.append((sequence, Ask()))
        return wanted

    def _has_room(self, sequence: Sequence, ask: Ask) -> bool:
        """Blocks for what another program computes; without them the sequence goes on without that program."""
        memory = self._memories[ask.program]
        computed = sequence.computed_elsewhere.get(ask.program)
        if computed is None:
            computed = memory.admit(sequence)
            if computed is None:
                return False
            sequence.computed_elsewhere[ask.program] = computed
        if memory.reserve(sequence, computed, sequence.tokens_known + len(ask.tree) - computed):
            return True
        memory.release(sequence, computed)
        del sequence.computed_elsewhere[ask.program]
        sequence.tree = PLAIN
        self.decoder.cannot(sequence, ask.program)
        return False

    def _preempt(self, sequence: Sequence) -> None:
        # known     |------------------------|          known     |------------------------|
        # computed  |--------------------|        ->    computed  |                             blocks given back
        self._release(sequence)
        self._released.append(sequence.id)
        self._barred.add(sequence.id)
        self._running.remove(sequence)
        sequence.preemptions += 1
        sequence.tokens_recomputed += sequence.tokens_computed
        self.preemptions += 1
        self.tokens_recomputed += sequence.tokens_computed
        sequence.tokens_computed = 0
        insort(self._waiting, sequence, key=_rank)  # its rank puts it before all who came later

    # -- commit

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        """Take the step's results over into the sequences; returns what there is to tell."""
        name = next((name for name, (flying, _) in self._in_flight.items() if flying is plan), None)
        if name is None:
            raise InvariantError("commit of a plan that is not the one in flight")
        if len(result.rows) != len(plan.entries):
            raise InvariantError(f"{len(plan.entries)} entries were planned and {len(result.rows)} answered")
        _, all_placed = self._in_flight.pop(name)
        self._busy.difference_update([one.sequence.id for one in all_placed])
        if self.pace is not None:
            self.pace.took(result.ended_s)
        events = []
        for placed, answers in zip(all_placed, result.rows, strict=True):
            if placed.sequence.id in self._cancelled:
                continue
            if placed.ask.program != MODEL:
                self._follow(placed, answers)
            elif (event := self._advance(placed, answers, result.ended_s)) is not None:
                events.append(event)
        if self._cancelled:
            ended = sorted(self._cancelled.keys() - self._busy)
            events += [self._finish(self._cancelled.pop(one), "cancelled", result.ended_s) for one in ended]
        return events

    def _follow(self, placed: Placed, answers: tuple[RowResult, ...]) -> None:
        """Another program has computed some of the sequence."""
        sequence, program = placed.sequence, placed.ask.program
        if program not in sequence.computed_elsewhere:
            return  # it has ended in this very step
        computed = sequence.computed_elsewhere[program] + len(placed.entry.tokens)
        sequence.computed_elsewhere[program] = computed
        sequence.tree = self.decoder.settle(sequence, placed.ask, placed.entry, answers).tree
        self._memories[program].advance(sequence, min(computed, sequence.tokens_known))

    def _advance(self, placed: Placed, answers: tuple[RowResult, ...], at_s: float) -> TokenEvent | None:
        sequence, entry = placed.sequence, placed.entry
        request, count = sequence.request, len(entry.tokens)
        sequence.tokens_computed += count - entry.tentative
        self.policy.served(sequence, count)
        if request.is_ruled and self._rules is not None and (broken := self._rules.failure(sequence)):
            return self._finish(sequence, "error", at_s, error=broken)
        choices = answers if request.prompt_logprobs is None else _take_scores(sequence, entry, answers)
        settled = self.decoder.settle(sequence, placed.ask, entry, choices) if choices else Settled(tree=sequence.tree)
        seen = self.sight.see(sequence, choices[0]) if choices else UNSEEN
        chosen = self._become_known(sequence, entry.tentative, settled)
        scored: tuple[Scored, ...] = ()
        if chosen and request.sampling.logprobs is not None:
            scored = tuple(_scored(choices[place + 1]) for place in (-1, *settled.places)[: len(chosen)])
        reason = self._reason(sequence, chosen)
        if reason is not None:
            return self._finish(sequence, reason, at_s, chosen, scored, seen)
        if chosen and sequence.hands_on:
            return self._part(sequence, at_s, chosen, scored, seen)
        if chosen and not self.options.cache:
            sequence.tokens_computed = 0
        self.memory.advance(sequence, sequence.tokens_computed)
        return _event(sequence, at_s, chosen, scored, seen) if chosen else None

    def _become_known(self, sequence: Sequence, guessed: int, settled: Settled) -> tuple[int, ...]:
        """Chosen tokens, up to the first that ends the sequence; accepted guesses among them are computed already."""
        request, before = sequence.request, len(sequence.tokens)
        room = min(request.max_tokens - (before - len(request.prompt)), self.context - before)
        chosen = settled.tokens[: max(0, room)]
        if not request.ignore_stop:
            for place, token in enumerate(chosen, 1):
                if token in request.stop_ids:
                    chosen = chosen[:place]
                    break
        accepted = settled.places[: len(chosen)]
        if accepted and accepted != tuple(range(len(accepted))):
            self.memory.keep_places(sequence, sequence.tokens_computed, accepted)
        sequence.tokens += chosen
        sequence.tree = settled.tree
        if guessed:
            sequence.tokens_computed += len(accepted)
            sequence.tokens_guessed += guessed
            sequence.tokens_accepted += len(accepted)
        for program, computed in sequence.computed_elsewhere.items():
            sequence.computed_elsewhere[program] = min(computed, before + len(accepted))
        return chosen

    def _reason(self, sequence: Sequence, chosen: tuple[int, ...]) -> str | None:
        """Why the sequence ends here, or None."""
        request, known = sequence.request, len(sequence.tokens)
        if chosen and not request.ignore_stop and chosen[-1] in request.stop_ids:
            return "stop"
        if known - len(request.prompt) >= request.max_tokens and (chosen or sequence.tokens_computed >= known):
            return "length"
        return "length" if chosen and known >= self.context else None

    def _finish(
        self, sequence: Sequence, reason: str, at_s: float,
        chosen: tuple[int, ...] = (), scored: tuple[Scored, ...] = (), seen: Seen = UNSEEN, error: str | None = None,
    ) -> TokenEvent:  # fmt: skip
        self._release(sequence)
        del self._by_request[sequence.request.id]
        if sequence in self._running:
            self._running.remove(sequence)
            self._released.append(sequence.id)
            is_batch_over = self.options.batching != "static" or not self._running
            self._slots_done = 0 if is_batch_over else self._slots_done + 1
        else:
            self._waiting.remove(sequence)
        self.policy.finished(sequence, reason)
        if self._on_finish is not None:
            self._on_finish(sequence, reason, at_s)
        return _event(sequence, at_s, chosen, scored, seen, reason, error)

    def _part(
        self, sequence: Sequence, at_s: float, chosen: tuple[int, ...], scored: tuple[Scored, ...], seen: Seen
    ) -> TokenEvent:
        """It is over here, but what is computed of it stays until let_go."""
        self.memory.advance(sequence, sequence.tokens_computed)
        self._release_others(sequence)
        del self._by_request[sequence.request.id]
        self._parted[sequence.request.id] = sequence
        self._running.remove(sequence)
        self._released.append(sequence.id)
        self.policy.finished(sequence, HANDED_ON)
        if self._on_finish is not None:
            self._on_finish(sequence, HANDED_ON, at_s)
        return _event(sequence, at_s, chosen, scored, seen)

    def _release(self, sequence: Sequence) -> None:
        """Give back what every program holds of the sequence."""
        self.memory.release(sequence, sequence.tokens_computed)
        self._release_others(sequence)

    def _release_others(self, sequence: Sequence) -> None:
        for program, computed in sequence.computed_elsewhere.items():
            self._memories[program].release(sequence, min(computed, sequence.tokens_known))
        sequence.computed_elsewhere.clear()
        sequence.tree = PLAIN
        self.decoder.forget(sequence.id)
        if sequence.request.is_ruled and self._rules is not None:
            self._rules.forget(sequence.id)

    def check(self) -> None:
        """Raise InvariantError unless every block and every sequence is accounted for (promise 2)."""
        for memory in self._memories.values():
            memory.check()
        here = [*self._waiting, *self._running]
        if {id(sequence) for sequence in here} != {id(sequence) for sequence in self._by_request.values()}:
            raise InvariantError("a request is neither waiting nor running, or both")
        if len(self._running) > self.options.sequences:
            raise InvariantError(f"{len(self._running)} sequences run; the limit is {self.options.sequences}")
        for queue in (self._waiting, self._running):
            if any(a.rank >= b.rank for a, b in pairwise(queue)):
                raise InvariantError("a queue is not in the policy's order")
            if self.policy.is_static and any(one.rank != self.policy.rank(one) for one in queue):
                raise InvariantError("a rank has moved under a policy that says its ranks never do")
        for sequence in self._waiting:
            if sequence.tokens_computed or any(memory.holds(sequence) for memory in self._memories.values()):
                raise InvariantError(f"request {sequence.request.id!r} waits but holds state")
        for sequence in self._running:
            if not 0 <= sequence.tokens_computed < sequence.tokens_known:
                raise InvariantError(f"request {sequence.request.id!r} runs with nothing to compute")


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank


def _take_scores(sequence: Sequence, entry: Entry, answers: tuple[RowResult, ...]) -> tuple[RowResult, ...]:
    """Keeps the scores of the prompt; returns the answers of the rows that choose."""
    choices = []
    for row, answer in zip(entry.rows, answers, strict=True):
        if row.target >= 0:
            sequence.scored.append(_scored(answer))
            if answer.hidden is not None:  # one after the other, so that no schedule changes the sum
                before = 0.0 if sequence.hidden_sum is None else sequence.hidden_sum
                sequence.hidden_sum = before + answer.hidden.astype(np.float64)
        else:
            choices.append(answer)
    return tuple(choices)


def _scored(answer: RowResult) -> Scored:
    if answer.logprob is None or answer.rank is None:
        raise InvariantError("log-probabilities were asked for and not given")
    return Scored(answer.token, answer.logprob, answer.rank, answer.top)


def _event(
    sequence: Sequence, at_s: float, chosen: tuple[int, ...], scored: tuple[Scored, ...], seen: Seen,
    finish: str | None = None, error: str | None = None,
) -> TokenEvent:  # fmt: skip
    is_first = sequence.tokens_output == len(chosen)
    prompt_scored = tuple(sequence.scored) if is_first else ()
    return TokenEvent(
        sequence.request.id, chosen, at_s, scored, prompt_scored, finish, error,
        preemptions=sequence.preemptions, tokens_recomputed=sequence.tokens_recomputed,
        tokens_cached=sequence.tokens_cached,
        tokens_guessed=sequence.tokens_guessed, tokens_accepted=sequence.tokens_accepted,
        hidden=seen.hidden, length=seen.length,
        planned_s=(sequence.first_scheduled_s or 0.0) if is_first else 0.0,
    )  # fmt: skip

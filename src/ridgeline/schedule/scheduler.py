"""The scheduling mechanism: gives token budget to whoever still has tokens to compute. Only writer of Sequence.

A running sequence holds blocks for every token it knows, so it needs at most one more block a step. When there is
none, the policy's victim starts over later (recompute), but never the sequence served first: so somebody always ends.
Refuses at add what could never fit. Knows nothing of models, kernels or text.
"""

# size: 20 short methods; planning and committing share the queues, and only this class may write a Sequence

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from itertools import pairwise

from ridgeline.kit.errors import CapacityError, InvariantError, UserError
from ridgeline.state.event import Scored, TokenEvent
from ridgeline.state.plan import Entry, RowResult, SequenceId, StepPlan, StepResult
from ridgeline.state.ports import SequenceMemory
from ridgeline.state.request import Request
from ridgeline.state.sequence import Rank, Sequence

from .options import ScheduleOptions
from .policy import Policy
from .rows import fit_rows, make_rows

OnFinish = Callable[[Sequence, str, float], None]


class Scheduler:
    """waiting and running are kept in the policy's order, as of its last review. plan and commit alternate; add and
    cancel come any time."""

    def __init__(
        self, memory: SequenceMemory, policy: Policy, options: ScheduleOptions, *, context: int,
        on_finish: OnFinish | None = None,
    ) -> None:  # fmt: skip
        options.check()
        self.memory, self.policy, self.options, self.context = memory, policy, options, context
        self.preemptions = 0
        self.tokens_recomputed = 0  # lost by preemption, all requests together
        self._on_finish = on_finish
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._by_request: dict[str, Sequence] = {}
        self._in_flight: StepPlan | None = None
        self._flying: dict[SequenceId, Sequence] = {}
        self._cancelled: set[SequenceId] = set()
        self._released: list[SequenceId] = []
        self._slots_done = 0  # finished sequences of a static batch that still runs
        self._next_id = 0

    # -- in and out

    def add(self, request: Request, now: float) -> None:
        """Queue a request. CapacityError when not even an empty pool could hold it; UserError for an id in use."""
        if request.id in self._by_request:
            raise UserError(f"request id {request.id!r} is already in use; give every request its own id.")
        most = request.tokens_most(self.context)
        if not self.memory.fits_ever(most):
            raise CapacityError(
                f"request {request.id!r} may need the KV of {most} tokens, more than the whole pool holds. "
                f"Ask for fewer tokens, or start with more --kv-bytes."
            )
        arrival_s = now if request.arrival_s is None else request.arrival_s
        sequence = Sequence(self._next_id, request, arrival_s, list(request.prompt))
        self._next_id += 1
        self._by_request[request.id] = sequence
        sequence.rank = self.policy.rank(sequence)
        insort(self._waiting, sequence, key=_rank)

    def cancel(self, request_id: str, now: float) -> TokenEvent | None:
        """End a request. Blocks are free at once and its last event is returned; when a step is computing it, both
        come with commit (None). None too for a request that is not here (any more)."""
        sequence = self._by_request.get(request_id)
        if sequence is None:
            return None
        if sequence.id in self._flying:
            self._cancelled.add(sequence.id)
            return None
        return self._finish(sequence, "cancelled", now)

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
    def slots_held(self) -> int:
        """Running sequences, and in a static batch the places of those that have finished before the others."""
        return len(self._running) + self._slots_done

    # -- plan

    def plan(self, now: float) -> StepPlan:
        """What the next step computes; empty when there is nothing to do."""
        if self._in_flight is not None:
            raise InvariantError("plan was called before the last plan was committed")
        if not self.policy.is_static and self.policy.review(self._waiting, self._running, now):
            self._sort()
        evicted = self._hold_known()
        if not evicted:
            self._admit(now)
        entries = self._share()
        if not entries:
            return StepPlan(())
        plan = StepPlan(entries, tuple(self._released))
        self._released.clear()
        self._in_flight = plan
        self._flying = {sequence.id: sequence for sequence in self._running}
        return plan

    def _sort(self) -> None:
        """Both queues by ranks that have moved."""
        for queue in (self._waiting, self._running):
            for sequence in queue:
                sequence.rank = self.policy.rank(sequence)
            queue.sort(key=_rank)

    def _hold_known(self) -> bool:
        """Blocks for every token the running sequences know, in order; True when somebody had to give theirs up."""
        evicted = False
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            if self.memory.reserve(sequence, sequence.tokens_computed, sequence.tokens_to_compute):
                index += 1
                continue
            candidates = self._running[max(index, 1) :]  # never the one served first: it always finishes
            if not candidates:
                raise InvariantError(f"request {sequence.request.id!r} has the pool to itself and does not fit")
            self._preempt(self.policy.victim(candidates))
            evicted = True
        return evicted

    def _admit(self, now: float) -> None:
        """From waiting to running, in order, nobody skipped, while slots, tokens and blocks last."""
        is_static = self.options.batching == "static"
        if is_static and self._running:
            return
        while self._waiting:
            sequence = self._waiting[0]
            weaker = [other for other in self._running if self.policy.outranks(sequence, other)]
            spare = self.options.step_tokens - sum(self._want(one) for one in self._running if one not in weaker)
            if (spare <= 0 and not is_static) or sequence.id in self._released:
                return
            if self._enter(sequence, now):
                continue
            if not weaker:
                return
            self._preempt(self.policy.victim(weaker))

    def _enter(self, sequence: Sequence, now: float) -> bool:
        """Start running the first of the waiting; False (and no change) when there is no slot or no blocks for it."""
        if len(self._running) >= self.options.sequences:
            return False
        if not self.memory.reserve(sequence, sequence.tokens_computed, sequence.tokens_to_compute):
            return False
        if self._running and not self.memory.has_headroom(len(self._running)):
            self.memory.release(sequence, sequence.tokens_computed)  # it would be evicted again within a few steps
            return False
        del self._waiting[0]
        insort(self._running, sequence, key=_rank)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
        return True

    def _share(self) -> tuple[Entry, ...]:
        """Everybody who runs gets a token and a row; what is left goes in the policy's order."""
        tokens_left = self.options.step_tokens - len(self._running)
        rows_left = self.options.step_logit_rows - len(self._running)
        entries = []
        for sequence in self._running:
            count = fit_rows(sequence, min(self._want(sequence), 1 + tokens_left), 1 + rows_left)
            rows = make_rows(sequence, count)
            tokens_left -= count - 1
            rows_left -= len(rows) - 1
            start = sequence.tokens_computed
            tokens = tuple(sequence.tokens[start : start + count])
            entries.append(Entry(sequence.id, start, tokens, self.memory.blocks_of(sequence), rows))
        return tuple(entries)

    def _want(self, sequence: Sequence) -> int:
        chunk = self.options.chunk
        return sequence.tokens_to_compute if chunk is None else min(sequence.tokens_to_compute, chunk)

    def _preempt(self, sequence: Sequence) -> None:
        # known     |------------------------|          known     |------------------------|
        # computed  |--------------------|        ->    computed  |                             blocks given back
        self.memory.release(sequence, sequence.tokens_computed)
        self._released.append(sequence.id)
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
        if plan is not self._in_flight:
            raise InvariantError("commit of a plan that is not the one in flight")
        if len(result.rows) != len(plan.entries):
            raise InvariantError(f"{len(plan.entries)} entries were planned and {len(result.rows)} answered")
        flying, self._in_flight, self._flying = self._flying, None, {}
        events = []
        for entry, answers in zip(plan.entries, result.rows, strict=True):
            event = self._advance(flying[entry.sequence], entry, answers, result.ended_s)
            if event is not None:
                events.append(event)
        return events

    def _advance(
        self, sequence: Sequence, entry: Entry, answers: tuple[RowResult, ...], at_s: float
    ) -> TokenEvent | None:
        sequence.tokens_computed += len(entry.tokens)
        self.policy.served(sequence, len(entry.tokens))
        if sequence.id in self._cancelled:
            return self._finish(sequence, "cancelled", at_s)
        chosen: list[int] = []
        scored: list[Scored] = []
        for row, answer in zip(entry.rows, answers, strict=True):
            if row.target >= 0:
                sequence.scored.append(_scored(answer))
            else:
                chosen.append(answer.token)
                if row.logprobs >= 0:
                    scored.append(_scored(answer))
        sequence.tokens.extend(chosen)
        if chosen and not self.options.cache:
            sequence.tokens_computed = 0
        reason = self._reason(sequence, chosen)
        if reason is not None:
            return self._finish(sequence, reason, at_s, tuple(chosen), tuple(scored))
        return _event(sequence, at_s, tuple(chosen), tuple(scored)) if chosen else None

    def _reason(self, sequence: Sequence, chosen: list[int]) -> str | None:
        """Why the sequence ends here, or None."""
        request = sequence.request
        if chosen and not request.ignore_stop and chosen[-1] in request.stop_ids:
            return "stop"
        if sequence.tokens_output >= request.max_tokens and (chosen or not sequence.tokens_to_compute):
            return "length"
        return "length" if chosen and sequence.tokens_known >= self.context else None

    def _finish(
        self, sequence: Sequence, reason: str, at_s: float,
        chosen: tuple[int, ...] = (), scored: tuple[Scored, ...] = (),
    ) -> TokenEvent:  # fmt: skip
        self.memory.release(sequence, sequence.tokens_computed)
        self._cancelled.discard(sequence.id)
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
        return _event(sequence, at_s, chosen, scored, reason)

    def check(self) -> None:
        """Raise InvariantError unless every block and every sequence is accounted for (promise 2)."""
        self.memory.check()
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
            if sequence.tokens_computed or self.memory.holds(sequence):
                raise InvariantError(f"request {sequence.request.id!r} waits but holds state")
        for sequence in self._running:
            if not 0 <= sequence.tokens_computed < sequence.tokens_known:
                raise InvariantError(f"request {sequence.request.id!r} runs with nothing to compute")


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank


def _scored(answer: RowResult) -> Scored:
    if answer.logprob is None or answer.rank is None:
        raise InvariantError("log-probabilities were asked for and not given")
    return Scored(answer.token, answer.logprob, answer.rank, answer.top)


def _event(
    sequence: Sequence, at_s: float, chosen: tuple[int, ...], scored: tuple[Scored, ...], finish: str | None = None
) -> TokenEvent:
    is_first = sequence.tokens_output == len(chosen)
    return TokenEvent(
        request=sequence.request.id,
        tokens=chosen,
        at_s=at_s,
        scored=scored,
        prompt_scored=tuple(sequence.scored) if is_first else (),
        finish=finish,
        preemptions=sequence.preemptions,
        tokens_recomputed=sequence.tokens_recomputed,
    )

"""Runner: executes StepPlans on a bound Program. Adjacent native lines are one call; the rest are call-outs.

Owns the arena, the packed weights, the thread team and the step's arrays. Called by engine/ through StepRunner.
"""
# size: one argument a part it is joined from

from __future__ import annotations

import time
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.kernels import native
from ridgeline.kit.clock import Clock
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.ops.op import TOKENS, Value
from ridgeline.ops.program import Program
from ridgeline.state.plan import RowResult, StepPlan, StepResult

from .arena import StepLimits, plan_arena
from .batch import NativeBatch
from .bind import Bound
from .emit import Emitter, quantised_values
from .torch_body import TensorCache, TorchStep, run_line
from .transfers import Mover


def arena_bytes(bound: Bound, limits: StepLimits) -> int:
    """Bytes of intermediates for the largest step: what the memory bill calls activations."""
    quantised = quantised_values(bound.program, bound.bodies)
    return plan_arena(bound.program, bound.bodies, limits, quantised).nbytes


class Runner:
    """Implements state.ports.StepRunner at depth 0: submit runs the step, collect hands out its result."""

    def __init__(
        self, bound: Bound, pools: tuple[KvPool, ...], *, limits: StepLimits, threads: int, clock: Clock,
        device: str = "cpu", team: native.Team | None = None, states: RecurrentPool | None = None,
        beside: Runner | None = None,
    ) -> None:  # fmt: skip
        """pools: one for every KvGroup of the program, in their order. team: threads to use, which stay their owner's
        to close; None: an own team. states: recurrent state, if the program keeps some. beside: a runner of the same
        program whose weights this one reads too; both may be in a step at a time, of different sequences."""
        if device != "cpu" and any(body == "cpp" for body in bound.bodies):
            raise InvariantError(f"native bodies cannot run on {device}")
        self.bound, self.pools, self.limits, self.threads = bound, pools, limits, threads
        self.states = states
        self.native_calls = 0
        reaches = tuple(group.reach for group in bound.program.kv_groups)
        self._mover: Mover = Mover(pools, states, reaches) if beside is None else beside.kept
        self.kept: Mover = self._mover
        self._clock, self._device = clock, device
        program, bodies = bound.program, bound.bodies
        plan = plan_arena(program, bodies, limits, quantised_values(program, bodies))
        self._offsets = plan.offsets
        self._line_ns = np.zeros(len(program.lines), np.int64)
        marks = tuple(np.array([program.cuts[layer] for layer in group.layers]) for group in program.kv_groups)
        self._mover.follow(self._line_ns, marks)
        self._tensors = TensorCache(device)
        self._values: dict[int, Any] = {}
        self._emitter: Emitter = Emitter(bound, plan, beside._emitter.weights if beside is not None else None)
        self._segments: list[tuple[int, int, Any]] = []  # lines [a, b) and their tape, None: reference
        for body, lines in groupby(program.lines, key=lambda line: bodies[line.index]):
            span = [line.index for line in lines]
            tape = self._emitter.tape(span[0], span[-1] + 1) if body == "cpp" else None
            self._segments.append((span[0], span[-1] + 1, tape))
        routes = [line.index for line in program if line.op.kind == "route"]
        self._routes = [] if any(bodies[index] == "torch" for index in routes) else routes
        self._is_mixed = "torch" in bodies
        self._head = next((line.output for line in program if line.op.kind == "head"), None)
        self._hidden = program.hidden
        vocabulary = self._head.width if self._head is not None else 0
        self._batch = NativeBatch(limits, self._line_ns, len(pools), states, vocabulary, _kept_elsewhere(program))
        if "cpp" in bodies:
            attends = [line.attributes for line in program if line.op.kind == "attend"]
            self._team, self._is_team_own = team or native.Team(threads), team is None
            self._arena = native.aligned(plan.nbytes)
            self._scratch = native.aligned(
                native.scratch_bytes(
                    threads, limits.tokens, limits.context, max((a["heads"] for a in attends), default=1),
                    max((a["head_dim"] for a in attends), default=8),
                    self._head.width if self._head else 0,
                )
            )  # fmt: skip
            self._pools = native.Pools(pools)

    # -- StepRunner

    def submit(self, plan: StepPlan) -> StepResult:
        started = self._clock.now()
        calls = self.native_calls
        native_ns = 0
        batch = self._batch
        if plan.entries:
            batch.fill(plan)  # first: it refuses what cannot run
            batch.struct.corun = int(plan.takes_turns)
        transfer_ns = self._mover.run(plan.transfers) if plan.transfers else 0
        if not plan.entries:
            return StepResult((), started, self._clock.now(), transfer_ns=transfer_ns)
        step = TorchStep(plan, self.pools, self._tensors, self._device, self.states) if self._is_mixed else None
        self._mover.begin(plan)
        for start, stop, tape in self._segments:
            if tape is not None:
                began_ns = time.perf_counter_ns()
                native.execute(self._team, tape, self._arena, self._scratch, self._pools, batch.struct)
                native_ns += time.perf_counter_ns() - began_ns
                self.native_calls += 1
            else:
                self._run_reference(step, start, stop, plan)
        self._mover.end()
        rows = batch.results(plan)
        if step is not None and self.bound.bodies[-1] == "torch":
            answers = iter(step.results)
            rows = tuple(tuple(_answered(next(answers)) for _ in entry.rows) for entry in plan.entries)
        rows = self._with_hidden(plan, rows)
        experts = float(batch.line_experts[self._routes].mean()) if self._routes else None
        ended, calls = self._clock.now(), self.native_calls - calls
        return StepResult(
            rows, started, ended, self._line_ns.copy(), calls, transfer_ns=transfer_ns, experts=experts,
            native_ns=native_ns,
        )  # fmt: skip

    def collect(self, ticket: object) -> StepResult:
        if not isinstance(ticket, StepResult):
            raise InvariantError("collect got a ticket that submit never gave")
        return ticket

    def close(self) -> None:
        self._mover.close()
        if "cpp" in self.bound.bodies and self._is_team_own:
            self._team.close()

    # -- several runners on one pool

    def use(self, team: native.Team) -> None:
        """For the next steps; at most `threads` threads. It stays its owner's to close."""
        if team.threads > self.threads:
            raise InvariantError(f"a team of {team.threads} for a runner built for {self.threads} threads")
        if self._is_team_own:
            self._team.close()
        self._team, self._is_team_own = team, False

    def move(self, plan: StepPlan) -> tuple[StepPlan, int]:
        """Carry the plan's transfers out now; the plan without them, and the nanoseconds it took."""
        if not plan.transfers:
            return plan, 0
        return msgspec.structs.replace(plan, transfers=()), self._mover.run(plan.transfers)

    # -- facts

    @property
    def resident_weight_bytes(self) -> int:
        """Weights as this runner keeps them in memory."""
        return self._emitter.weights.nbytes + self._tensors.nbytes

    def measure_tier(self, tier: str) -> float:
        """Bytes a second at which saved blocks come back. Only before the first step."""
        return self._mover.measure(tier)

    def last_logits(self, rows: int) -> npt.NDArray[np.float32]:
        """Raw logits [rows, vocabulary] of the step just run; a copy."""
        if self._head is None:
            raise InvariantError("this Program has no head")
        if self._head.id in self._values:
            return np.asarray(self._values[self._head.id].cpu().numpy()[:rows]).copy()
        return self._view(self._head, rows).copy()

    # -- inside

    def _with_hidden(
        self, plan: StepPlan, answers: tuple[tuple[RowResult, ...], ...]
    ) -> tuple[tuple[RowResult, ...], ...]:
        """Rows that asked for it get what the head read: in the arena it stays until the next step."""
        if not any([row.hidden for entry in plan.entries for row in entry.rows]):
            return answers
        if self._hidden is None:
            raise InvariantError("this Program has no head, so nothing that a head reads")
        called_out = self._values.get(self._hidden.id)
        states = self._view(self._hidden, sum(map(len, answers))) if called_out is None else called_out.cpu().numpy()
        state = iter(states)
        return tuple(
            tuple(
                msgspec.structs.replace(answer, hidden=one.copy()) if row.hidden else answer
                for row, answer, one in zip(entry.rows, given, state, strict=False)
            )
            for entry, given in zip(plan.entries, answers, strict=True)
        )

    def _run_reference(self, step: TorchStep | None, start: int, stop: int, plan: StepPlan) -> None:
        if step is None:
            raise InvariantError("a reference segment without a reference step")
        program: Program = self.bound.program
        for line in program.lines[start:stop]:
            began = time.perf_counter_ns()
            for value in line.inputs:
                if self.bound.bodies[self._producer(value)] == "cpp":
                    import torch  # noqa: PLC0415  heavy and optional

                    self._values[value.id] = torch.from_numpy(self._view(value, self._rows(value, plan)))
            output = run_line(step, line, self._values)
            self._values[line.output.id] = output
            if "cpp" in self.bound.bodies and line.output.id in self._offsets and line.op.kind != "sample":
                self._view(line.output, self._rows(line.output, plan))[:] = output.cpu().numpy()
            self._line_ns[line.index] = time.perf_counter_ns() - began

    def _producer(self, value: Value) -> int:
        return next(line.index for line in self.bound.program if line.output is value)

    def _rows(self, value: Value, plan: StepPlan) -> int:
        return plan.tokens if value.rows == TOKENS else sum(len(entry.rows) for entry in plan.entries)

    def _view(self, value: Value, rows: int) -> npt.NDArray[np.float32]:
        begin = self._offsets[value.id]
        view = self._arena[begin : begin + rows * value.width * 4].view(np.float32)
        return view.reshape(rows, value.width)


def _answered(result: RowResult | None) -> RowResult:
    if result is None:
        raise InvariantError("a logit row was planned and not answered")
    return result


def _kept_elsewhere(program: Program) -> tuple[int, ...]:
    """Tokens of a sequence, by group, that another group keeps until their block is whole (E7)."""
    reaches = [group.reach for group in program.kv_groups]
    return tuple(0 if reach.is_recent or not reach.block else reach.block - 1 for reach in reaches)

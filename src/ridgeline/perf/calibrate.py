"""Calibration: how close our own kernels come to this machine's ceilings, and what the host adds to a step.

Runs the real runner and engine on random weights for some seconds and returns the Machine with `efficiency` and
`host_s` filled. Predictions use them; roofs never do, so a slow kernel cannot hide behind its own measurement.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.clock import WallClock
from ridgeline.kit.cost import Cost
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES
from ridgeline.models.load import load, record
from ridgeline.run.arena import StepLimits
from ridgeline.run.bind import bind
from ridgeline.run.cost_runner import batch_shape
from ridgeline.run.estimate import compute_kind
from ridgeline.run.machine import Machine
from ridgeline.run.runner import Runner
from ridgeline.state.plan import Entry, LogitRow, StepPlan, StepResult
from ridgeline.state.request import Request, Sampling
from ridgeline.state.sequence import Sequence as EngineSequence

MODEL = "random:smollm2-135m"  # weights beyond most last-level caches, and still loaded in a second
FORMATS = ("q4_1", "bf16")  # integer and float arithmetic; the head of q4_1 is q8_0
CONTEXT = 1024
LIMITS = StepLimits(tokens=256, logit_rows=16, sequences=16, context=CONTEXT + BLOCK_TOKENS)
REPEATS = 5


def calibrate(machine: Machine, progress: Callable[[str], None] = lambda step: None) -> Machine:
    """About 6 s. progress: called with a few words before each part."""
    efficiency: dict[str, float] = {}
    for weights in FORMATS:
        progress(f"kernels on {weights} weights")
        efficiency |= _efficiency(machine, weights)
    progress("the host between steps")
    return msgspec.structs.replace(machine, efficiency=efficiency, host_s=_host_s(machine.threads))


def _efficiency(machine: Machine, weights: str) -> dict[str, float]:
    loaded = load(MODEL, weights=weights)
    storage = STORAGES.get("bf16")
    program = record(loaded, storage)
    blocks = LIMITS.sequences * LIMITS.context // BLOCK_TOKENS
    pools = tuple(
        KvPool(storage, layers=len(g.layers), kv_heads=g.kv_heads, head_dim=g.head_dim, blocks=blocks)
        for g in program.kv_groups
    )
    runner = Runner(bind(program), pools, limits=LIMITS, threads=machine.threads, clock=WallClock())
    bandwidth = machine.bandwidth(sum(weight.nbytes for weight in program.weights))

    def timed(plan: StepPlan) -> Callable[[Sequence[str]], tuple[Cost, float]]:
        """Median seconds and cost of lines by operator kind."""
        results = [runner.collect(runner.submit(plan)) for _ in range(REPEATS)]
        lines = np.median([result.line_ns for result in results if result.line_ns is not None], axis=0) * 1e-9
        shape = batch_shape(plan)

        def of(kinds: Sequence[str]) -> tuple[Cost, float]:
            cost, seconds = Cost(), 0.0
            for line in program:
                if line.op.kind in kinds:
                    cost, seconds = cost + line.cost(shape), seconds + float(lines[line.index])
            return cost, max(seconds, 1e-9)

        return of

    found: dict[str, float] = {}
    number_kind = compute_kind(next(line for line in program if line.op.kind == "linear"))
    many, one = timed(_plan([(0, 256)])), timed(_plan([(8, 1)]))
    far, deep = timed(_plan([(CONTEXT - 1, 1)] * 16)), timed(_plan([(CONTEXT - 256, 256)]))
    cost, seconds = many(("linear",))
    for kind in ("linear", "head", "experts"):  # experts run the blocks of linear
        found[f"{kind} {number_kind}"] = cost.flops / seconds / machine.peak(number_kind)
    cost, seconds = one(("linear", "head"))
    for kind in ("linear", "head", "experts"):
        found[f"{kind} {number_kind} bytes"] = cost.weight_bytes / seconds / bandwidth
    cost, seconds = deep(("attend",))
    found["attend f32"] = cost.flops / seconds / machine.peak("f32")
    cost, seconds = far(("attend",))
    found["attend f32 bytes"] = cost.kv_bytes / seconds / bandwidth
    for kind in ("norm", "rope", "activation"):
        cost, seconds = many((kind,))
        found[f"{kind} f32"] = cost.flops / seconds / machine.peak("f32")
    runner.close()
    return {key: min(share, 1.5) for key, share in found.items()}


def _plan(entries: Sequence[tuple[int, int]]) -> StepPlan:
    """Steps at any context: KV pages are read as they are, numbers do not matter for time."""
    per_sequence = LIMITS.context // BLOCK_TOKENS
    return StepPlan(
        tuple(
            Entry(
                index, start, tuple(range(5, 5 + tokens)),
                (np.arange(index * per_sequence, (index + 1) * per_sequence, dtype=np.int32),),
                (LogitRow(tokens - 1, start + tokens, Sampling()),),
            )
            for index, (start, tokens) in enumerate(entries)
        )
    )  # fmt: skip


class _Gaps:
    """Observer: step time outside native lines, plus time between steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last_end: float | None = None

    def on_step(self, plan: StepPlan, result: StepResult) -> None:
        inside = 0.0 if result.line_ns is None else float(result.line_ns.sum()) * 1e-9
        if self._last_end is not None:
            self.seconds.append(result.ended_s - self._last_end - inside)
        self._last_end = result.ended_s

    def on_finish(self, sequence: EngineSequence, reason: str, at_s: float) -> None:
        pass


def _host_s(threads: int) -> float:
    """Median over steps of one sequence, engine loop included."""
    gaps = _Gaps()
    config = EngineConfig(MODEL, weights="q4_1", threads=threads, kv_bytes=1 << 26, context=512)
    engine = build(config, observer_factory=lambda parts: gaps)
    engine.add(Request("calibrate", (5, 6, 7), 40, ignore_stop=True))
    while engine.has_work:
        engine.step()
    engine.close()
    return statistics.median(gaps.seconds)

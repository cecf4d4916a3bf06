"""Calibration: what our own kernels need by number of rows, how near they come to the ceilings, what the host adds.

Runs the real runner and engine for some seconds and returns the Machine with `rates`, `efficiency` and `host_s` filled.
Predictions use them; roofs never do, so a slow kernel cannot hide behind its own measurement.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.kernels.packing import reads_integers
from ridgeline.kit.clock import WallClock
from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES
from ridgeline.models.load import load, record
from ridgeline.ops.op import Line
from ridgeline.ops.program import Program
from ridgeline.run.activations import ACTIVATIONS, DEFAULT
from ridgeline.run.arena import StepLimits
from ridgeline.run.bind import bind
from ridgeline.run.cost_runner import batch_shape
from ridgeline.run.count import weight_bytes
from ridgeline.run.estimate import FURTHER, Estimator, compute_kind, product_weights, rate_key
from ridgeline.run.machine import Machine, load_or_measure, recheck, store
from ridgeline.run.noise import CpuWatch
from ridgeline.run.rates import PANEL, ROWS, LineRate
from ridgeline.run.runner import Runner
from ridgeline.state.plan import Entry, LogitRow, StepPlan, StepResult
from ridgeline.state.request import Request, Sampling
from ridgeline.state.sequence import Sequence as EngineSequence

MODEL = "random:smollm2-135m"  # weights beyond most last-level caches, and still loaded in a second
FORMATS = ("q4_1", "q8_0", "bf16")  # integers of 4 and 8 bits, and floats; others borrow from the nearest
INTEGERS = {"q4_1": 5.0, "q8_0": 8.5}  # bits of those that products read as integers
CONTEXT, BEFORE = 1024, 8  # kept tokens of far steps and of short ones
PARTS = ((0, 48), (0, 192), (400, 96), (700, 48), (896, 128))  # of prompts: (context, tokens)
LIMITS = StepLimits(tokens=256, logit_rows=16, sequences=16, context=CONTEXT + BLOCK_TOKENS)
ROUNDS = 3  # over all numbers of rows in turn: whatever drifts, drifts for all
BUDGET_S = 3.0  # no further round after this: a large model, or a machine that others use
MANY = 4  # runs of a plan of few rows in a round
QUANTILE = 0.25  # of a line's runs: others only slow it down
SMALL = ("norm", "rope", "activation", "add", "embed", "gather", "sample", "head_norm", "attend")
Work = tuple[float, float]  # units, seconds


def calibrate(
    machine: Machine, progress: Callable[[str], None] = lambda step: None, model: str | None = None
) -> Machine:
    """About 15 s; with a model, its own formats too. progress: called with a few words before each part."""
    rates, efficiency, moment = dict(machine.rates), dict(machine.efficiency), _Moment(machine)
    asked = [(MODEL, weights) for weights in FORMATS] + ([(model, "native")] if model is not None else [])
    for name, weights in asked:
        program = None
        for activations in ("int16", "int8") if name == MODEL else ACTIVATIONS:
            if program is not None and rate_key("", program).endswith("f32"):
                break  # floats do not care
            progress(f"kernels on {weights if name == MODEL else name} weights, {activations} activations")
            with _Bench(machine, name, weights, activations) as bench:
                program = bench.program
                found = bench.rates()
                rates |= {key: rate for key, rate in found.items() if name != MODEL or _is_better(rate, rates, key)}
                if name == MODEL and activations == "int16":
                    shares, further = bench.attention(msgspec.structs.replace(machine, rates=rates))
                    efficiency, rates = efficiency | shares, rates | further
    progress("the host between steps")
    host_s = _host_s(machine.threads)
    return moment.stamp(msgspec.structs.replace(machine, rates=rates, efficiency=efficiency, host_s=host_s))


def calibrated(
    program: Program, threads: int | None = None, activations: str = DEFAULT,
    progress: Callable[[str], None] = lambda step: None,
) -> Machine:  # fmt: skip
    """This machine, with what estimates of a program need of our kernels: what is missing is measured now (about 5 s)
    and kept, so that nothing is predicted from the ceilings alone. What was measured while others used the machine is
    measured again later, and the faster of both kept. Without native bodies: the ceilings."""
    machine = load_or_measure(threads)
    known = {} if machine.may_calibrate_better else machine.rates
    if machine.source != "native" or not missing(program, known, activations):
        return machine
    moment, rates, efficiency = _Moment(machine), dict[str, LineRate](), dict[str, float]()
    asked: list[tuple[str, str]] = []
    while wanted := missing(program, known | rates, activations):
        if (pair := wanted[0]) in asked:
            raise InvariantError(f"a calibration of {pair} says nothing about {pair}")
        weights, mode = pair
        asked.append(pair)
        progress(f"kernels on {weights} weights, {mode} activations, once")
        with _Bench(machine, MODEL, weights, mode) as bench:
            rates |= {key: rate for key, rate in bench.rates().items() if _is_better(rate, rates, key)}
            if rate_key(FURTHER, bench.program) not in known | rates:
                shares, further = bench.attention(msgspec.structs.replace(machine, rates=rates))
                efficiency, rates = efficiency | shares, rates | further
    host_s = _host_s(machine.threads)
    found = msgspec.structs.replace(machine, rates=rates, efficiency=efficiency, host_s=host_s)
    return store(fastest(machine, moment.stamp(found)))


def fastest(old: Machine, new: Machine) -> Machine:
    """Both calibrations together, where both have a number the faster; as calm as the new one when it has everything,
    else as the worse of them."""
    rates = dict(old.rates)
    for key, rate in new.rates.items():
        known = rates.get(key)
        if known is not None and known.rows == rate.rows:
            best = tuple(min(pair) for pair in zip(known.seconds, rate.seconds, strict=True))
            rates[key] = msgspec.structs.replace(rate, seconds=best)
        elif _is_better(rate, rates, key):
            rates[key] = rate
    efficiency = {key: max(share, old.efficiency.get(key, 0.0)) for key, share in new.efficiency.items()}
    shares = [one.kernels_foreign_share for one in (old, new) if one.kernels_foreign_share is not None]
    paces = [one.kernels_pace for one in (old, new) if one.kernels_pace is not None]
    is_whole = new.rates.keys() >= old.rates.keys()
    calmest, quickest = (min, max) if is_whole else (max, min)
    return msgspec.structs.replace(
        new, rates=rates, efficiency=old.efficiency | efficiency, host_s=min(old.host_s or new.host_s, new.host_s),
        kernels_foreign_share=calmest(shares, default=None), kernels_pace=quickest(paces, default=None),
    )  # fmt: skip


class _Moment:
    """What disturbs a calibration between its beginning and its end."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._pace = machine, recheck(machine).arithmetic
        self._watch = CpuWatch()

    def stamp(self, calibrated: Machine) -> Machine:
        share, at = self._watch.foreign_cpu_share(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        pace = min(self._pace, recheck(self._machine).arithmetic)
        return msgspec.structs.replace(calibrated, kernels_at=at, kernels_foreign_share=share, kernels_pace=pace)


def missing(program: Program, rates: Mapping[str, LineRate], activations: str) -> tuple[tuple[str, str], ...]:
    """(format, activations) that were not calibrated here: of FORMATS, the one nearest to each that a program has.

    Those of most lines first: a bench of these may answer for a head, whose rows are few."""
    wanted: dict[tuple[str, str], None] = {}
    mode = activations.partition(":")[0]
    rates = rates if rate_key(FURTHER, program) in rates else {}

    def is_known(key: str, line: Line) -> bool:
        return key in rates and (line.op.kind == "head" or rates[key].rows[-1] > PANEL)

    for line in program:
        for weight in product_weights(line):
            if not reads_integers(weight.format):
                if not is_known(weight.format.name, line) and not is_known("bf16", line):
                    wanted["bf16", "int16"] = None
                continue
            if is_known(f"{weight.format.name} {mode}", line):
                continue
            bits = 8 * weight.nbytes / (weight.rows * weight.columns)
            nearest = min((abs(known - bits), name) for name, known in INTEGERS.items())[1]
            modes = ("int8", "int16") if mode == "auto" else (mode,)
            wanted |= dict.fromkeys((nearest, one) for one in modes if not is_known(f"{nearest} {one}", line))
    return tuple(wanted)


def _is_better(rate: LineRate, known: dict[str, LineRate], key: str) -> bool:
    """A head has few rows, so a format that only it has is known by fewer."""
    return key not in known or len(rate.rows) >= len(known[key].rows)


class _Bench:
    """A runner on one model, its KV empty pages: numbers do not matter for time. UserError for recurrent models."""

    def __init__(self, machine: Machine, model: str, weights: str, activations: str) -> None:
        loaded = load(model, weights=weights)
        storage = STORAGES.get("bf16")
        self.program = record(loaded, storage)
        if self.program.state is not None:
            raise UserError(f"{model} keeps recurrent state and is not calibrated by rows. Leave the model out.")
        blocks = LIMITS.sequences * LIMITS.context // BLOCK_TOKENS
        pools = tuple(
            KvPool(storage, layers=len(g.layers), kv_heads=g.kv_heads, head_dim=g.head_dim, blocks=blocks)
            for g in self.program.kv_groups
        )
        bound = bind(self.program, activations=activations)
        self._runner = Runner(bound, pools, limits=LIMITS, threads=machine.threads, clock=WallClock())
        self._bytes_per_s = machine.bandwidth(weight_bytes(self.program))
        self._activations = activations

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def rates(self) -> dict[str, LineRate]:
        """Of every weight format, and of every small operator, by number of rows."""
        plans = {rows: self._plan([(BEFORE, 1)] * rows if rows <= PANEL else [(0, rows)]) for rows in ROWS}
        times: dict[int, list[npt.NDArray[np.int64]]] = {rows: [] for rows in ROWS}
        begun_s = time.perf_counter()
        for done in range(ROUNDS):
            if done and time.perf_counter() - begun_s > BUDGET_S:
                break
            for rows, plan in plans.items():
                times[rows] += self._run(plan, MANY if rows <= PANEL else 1)
        found: dict[str, dict[int, Work]] = {}
        bits: dict[str, float] = {}
        for rows, runs in times.items():
            shape = batch_shape(plans[rows], self.program.reaches)
            line_s = np.quantile(runs, QUANTILE, axis=0) * 1e-9
            for line in self.program:
                key, unit = self._unit(line)
                is_short = rows > PANEL and line.op.kind == "attend"  # a prompt's attention is judged by its flops
                if unit and not is_short and int(line.output.count(shape)) == rows:
                    units, seconds = found.setdefault(key, {}).get(rows, (0.0, 0.0))
                    found[key][rows] = (units + unit, seconds + float(line_s[line.index]))
                    if line.op.kind not in SMALL:
                        bits[key] = 8 * unit / sum(w.rows * w.columns for w in product_weights(line))
        return {key: self._rate(by_rows, bits.get(key, 0.0)) for key, by_rows in found.items() if 1 in by_rows}

    def _rate(self, by_rows: dict[int, Work], bits: float) -> LineRate:
        rows = tuple(sorted(by_rows))
        seconds = tuple(by_rows[count][1] / by_rows[count][0] for count in rows)
        return LineRate(rows, seconds, bits, self._bytes_per_s if bits else 0.0)

    def _unit(self, line: Line) -> tuple[str, float]:
        """(key, units) of a line's rate: bytes of weights all stored alike, or of one row's activations."""
        if line.op.kind in ("linear", "head"):
            names = {weight.format.name for weight in product_weights(line)}
            if len(names) != 1:
                return "", 0.0  # which of them took how long is not known
            mode = f" {self._activations}" if compute_kind(line) == "int8" else ""
            return f"{names.pop()}{mode}", float(sum(weight.nbytes for weight in product_weights(line)))
        if line.op.kind not in SMALL:
            return "", 0.0
        row = batch_shape(self._plan([(BEFORE, 1)]), self.program.reaches)
        return rate_key(line.op.kind, self.program), float(line.cost(row).activation_bytes)

    def attention(self, machine: Machine) -> tuple[dict[str, float], dict[str, LineRate]]:
        """Shares of the ceilings, arithmetic of parts of prompts and reading of many long contexts; and the rate of
        rows beyond a sequence's first. From parts of several lengths and depths: time goes with rows and with FLOPs."""
        plans = [self._plan([part]) for part in PARTS] + [self._plan([(CONTEXT - 1, 1)] * LIMITS.sequences)]
        times: list[list[npt.NDArray[np.int64]]] = [[] for _ in plans]
        for _ in range(ROUNDS):
            for plan, runs in zip(plans, times, strict=True):
                runs += self._run(plan, 1)
        known = {key: rate for key, rate in machine.rates.items() if key != rate_key(FURTHER, self.program)}
        estimator = Estimator(self.program, msgspec.structs.replace(machine, rates=known))
        rows = [self._attended(plan, runs, estimator) for plan, runs in zip(plans, times, strict=True)]
        row_s, flop_s = _two_rates(rows[:-1])
        far = rows[-1]
        read_s = max(far.seconds - flop_s * far.flops, far.seconds / 10)
        shares = {
            "attend f32": min(1 / (flop_s * machine.peak("f32")), 1.5),
            "attend f32 bytes": min(far.nbytes / read_s / self._bytes_per_s, 1.5),
        }
        return shares, {rate_key(FURTHER, self.program): LineRate((1,), (row_s,))}

    def _attended(self, plan: StepPlan, runs: list[npt.NDArray[np.int64]], estimator: Estimator) -> _Attended:
        """All layers together, without what one row of every sequence takes."""
        shape = batch_shape(plan, self.program.reaches)
        line_s = np.quantile(runs, QUANTILE, axis=0) * 1e-9
        units = flops = nbytes = seconds = 0.0
        for line in (line for line in self.program if line.op.kind == "attend"):
            cost = line.cost(shape)
            units += (shape.tokens - shape.sequences) * cost.activation_bytes / shape.tokens
            flops, nbytes = flops + cost.flops, nbytes + cost.kv_bytes
            seconds += max(float(line_s[line.index] - estimator.fixed_seconds(line, shape)), 1e-9)
        return _Attended(units, flops, nbytes, seconds)

    def _run(self, plan: StepPlan, times: int) -> list[npt.NDArray[np.int64]]:
        results = [self._runner.collect(self._runner.submit(plan)) for _ in range(times)]
        return [result.line_ns for result in results if result.line_ns is not None]

    def _plan(self, entries: Sequence[tuple[int, int]]) -> StepPlan:
        """Steps at any context: KV pages are read as they are."""
        per_sequence = LIMITS.context // BLOCK_TOKENS
        return StepPlan(
            tuple(
                Entry(
                    index, start, tuple(range(5, 5 + tokens)),
                    (np.arange(index * per_sequence, (index + 1) * per_sequence, dtype=np.int32),)
                    * len(self.program.kv_groups),
                    (LogitRow(tokens - 1, start + tokens, Sampling()),),
                )
                for index, (start, tokens) in enumerate(entries)
            )
        )  # fmt: skip


class _Attended(NamedTuple):
    """units: bytes of activations of rows beyond a sequence's first."""

    units: float
    flops: float
    nbytes: float
    seconds: float


def _two_rates(rows: Sequence[_Attended]) -> tuple[float, float]:
    """Seconds of a unit and of a FLOP, neither negative, by least squares of what each row is off by, as a share."""
    matrix = np.array([(row.units / row.seconds, row.flops / row.seconds) for row in rows])
    unit_s, flop_s = np.linalg.lstsq(matrix, np.ones(len(rows)), rcond=None)[0]
    if unit_s < 0 or flop_s <= 0:
        unit_s, flop_s = 0.0, float(matrix[:, 1].sum() / (matrix[:, 1] ** 2).sum())
    return float(unit_s), float(flop_s)


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

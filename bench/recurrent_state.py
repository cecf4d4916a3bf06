"""What a recurrent state costs beside keys and values: bytes by context in closed form, and the measured time of a
token beside the predicted one, of two random models of one size (no quality is claimed). Prints tables, then one line
of JSON.

PYTHONPATH=src python bench/recurrent_state.py [--repeats 5] [--contexts 16,512,2048,4096,8000] [--weights q8_0]
"""

from __future__ import annotations

import argparse
import json
import statistics

import msgspec
import numpy as np

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.memory.storage.storage import STORAGES
from ridgeline.models.load import describe, record
from ridgeline.ops.batch import BatchShape
from ridgeline.ops.program import Program
from ridgeline.run.estimate import Estimator
from ridgeline.run.machine import load_or_measure
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

COUNTED = ("mamba2-130m", "mamba2-2.7b", "smollm2-135m", "llama-2-7b", "llama-3-8b")
AGAINST = (("mamba2-130m", "smollm2-135m"), ("mamba2-2.7b", "llama-2-7b"), ("mamba2-2.7b", "llama-3-8b"))
PAIR = ("mamba2-130m", "smollm2-135m")  # run here


def program_of(name: str, weights: str = "native") -> Program:
    return record(describe(f"random:{name}", weights=weights), STORAGES.get("bf16"))


def state_bytes(program: Program) -> int:
    """Recurrent state of a sequence of any length."""
    kept = program.state
    if kept is None:
        return 0
    return len(kept.layers) * (kept.storage.conv_bytes(kept.shape) + kept.storage.scan_bytes(kept.shape))


def token_bytes(program: Program) -> int:
    """Keys and values of one token."""
    return sum(group.bytes_per_token for group in program.kv_groups)


def count() -> list[dict[str, float | str]]:
    """Bytes, and the contexts from which a recurrent model holds less and moves less than one with keys and values."""
    rows: list[dict[str, float | str]] = []
    programs = {name: program_of(name) for name in COUNTED}
    print(f"{'bytes of a sequence':<24}{'state':>14}{'a token':>12}")
    for name, program in programs.items():
        print(f"{name:<24}{state_bytes(program):>14,}{token_bytes(program):>12,}")
        rows.append({"model": name, "state_bytes": state_bytes(program), "token_bytes": token_bytes(program)})
    print("\nfrom how many tokens on the state is smaller (held), and less is moved for a token")
    for name, other in AGAINST:
        state, each = state_bytes(programs[name]), token_bytes(programs[other])
        held, moved = state / each, 2 * state / each - 1
        print(f"{name} against {other}: {held:,.0f} tokens held, {moved:,.0f} moved")
        rows.append({"model": name, "against": other, "held_tokens": held, "moved_tokens": moved})
    return rows


def plan(engine: Engine, context: int) -> StepPlan:
    """One token after `context`; what is in the pages and slots does not matter for time."""
    blocks = np.arange(context // 16 + 1, dtype=np.int32)
    tables = tuple(blocks for _ in engine.runner.bound.program.kv_groups)  # type: ignore[attr-defined]
    state = 0 if engine.facts.state_slots else -1
    row = LogitRow(0, context + 1, Sampling())
    return StepPlan((Entry(0, context, (5,), tables, (row,), state=state),))


def measure(contexts: list[int], repeats: int, weights: str) -> list[dict[str, float | str]]:
    """Median seconds of a step, the two models and all contexts in turn, beside the estimate."""
    machine = load_or_measure()
    engines = {
        name: build(EngineConfig(f"random:{name}", weights=weights, context=max(contexts) + 16, max_sequences=1))
        for name in PAIR
    }
    seconds: dict[tuple[str, int], list[float]] = {(name, context): [] for name in PAIR for context in contexts}
    mixing: dict[tuple[str, int], list[float]] = {key: [] for key in seconds}
    for turn in range(repeats + 1):
        for name, engine in engines.items():
            program = engine.runner.bound.program  # type: ignore[attr-defined]
            parts = [line.index for line in program if line.op.kind in ("attend", "conv", "scan")]
            for context in contexts:
                result = engine.runner.collect(engine.runner.submit(plan(engine, context)))
                if turn and result.line_ns is not None:  # the first turn warms up
                    seconds[name, context].append(result.ended_s - result.started_s)
                    mixing[name, context].append(float(result.line_ns[parts].sum()) * 1e-9)
    for engine in engines.values():
        engine.close()
    rows: list[dict[str, float | str]] = []
    print(f"\none token, {weights} weights, ms     " + "".join(f"{context:>10,}" for context in contexts))
    for name in PAIR:
        estimator = Estimator(program_of(name, weights), machine)
        shapes = [BatchShape.of([(context, 1)], 1) for context in contexts]
        predicted = [float(estimator.step_seconds(shape)) for shape in shapes]
        measured = [statistics.median(seconds[name, context]) for context in contexts]
        mixed = [statistics.median(mixing[name, context]) for context in contexts]
        for label, values in (("measured", measured), ("its attention or scan", mixed), ("predicted", predicted)):
            print(f"{name + ' ' + label:<36}" + "".join(f"{1e3 * value:>10.2f}" for value in values))
        rows += [
            {"model": name, "context": c, "measured_s": m, "mixing_s": x, "predicted_s": p}
            for c, m, x, p in zip(contexts, measured, mixed, predicted, strict=True)
        ]
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--contexts", default="16,512,2048,4096,8000")
    options.add_argument("--weights", default="q8_0")
    given = options.parse_args()
    counted = count()
    timed = measure([int(text) for text in given.contexts.split(",")], given.repeats, given.weights)
    fingerprint = msgspec.to_builtins(load_or_measure().fingerprint)
    print(json.dumps({"counted": counted, "timed": timed, "weights": given.weights, "machine": fingerprint}))


if __name__ == "__main__":
    main()

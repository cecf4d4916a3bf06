"""Trees, sinks, dropped blocks, quantised KV and mass through the runner: native bodies and their meanings agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ridgeline.kernels import native
from ridgeline.kit.clock import WallClock
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import LoadedModel, load, record
from ridgeline.ops.kv import Reach
from ridgeline.run.arena import StepLimits
from ridgeline.run.bind import bind
from ridgeline.run.runner import Runner
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

from ..engine.tiny import LLAMA, write_config

LIMITS = StepLimits(tokens=96, logit_rows=64, sequences=4, context=128)
PARENTS = (-1, 0, 0, 1, 1, 2, 3, -1)
BODIES = ("cpp", "torch")


@dataclass
class Keeps:
    """A retention that reads what it is told to."""

    given: Reach
    name: str = "test"

    def reach(self, window: int) -> Reach:
        return self.given


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    yield load(write_config(tmp_path_factory.mktemp("model"), LLAMA), weights="f32")


def runner_of(loaded: LoadedModel, storage: str = "bf16", reach: Reach | None = None, body: str = "cpp") -> Runner:
    program = record(loaded, make_storage(storage), None if reach is None else Keeps(reach))
    pools = tuple(
        KvPool(
            make_storage(g.storage.name), layers=len(g.layers), kv_heads=g.kv_heads, head_dim=g.head_dim, blocks=16,
            has_mass=g.reach.heavy > 0,
        )
        for g in program.kv_groups
    )  # fmt: skip
    return Runner(bind(program, body=body), pools, limits=LIMITS, threads=2, clock=WallClock())


def logits(runner: Runner, plan: StepPlan) -> np.ndarray:
    runner.collect(runner.submit(plan))
    return runner.last_logits(sum(len(entry.rows) for entry in plan.entries))


def rows(count: int, start: int) -> tuple[LogitRow, ...]:
    return tuple(LogitRow(offset, start + offset + 1, Sampling()) for offset in range(count))


def entry(start: int, tokens: tuple[int, ...], blocks: list[int], **fields) -> Entry:
    return Entry(1, start, tokens, (np.array(blocks, np.int32),), rows(len(tokens), start), **fields)


def far(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


PROMPT = tuple(range(5, 42))
BRANCHES = (60, 61, 62, 63, 64, 65, 66, 67)
BLOCKS = [3, 9, 1, 4]


def after_prompt(runner: Runner, plan: StepPlan) -> np.ndarray:
    logits(runner, StepPlan((entry(0, PROMPT, BLOCKS),)))
    found = logits(runner, plan)
    runner.close()
    return found


def test_the_logits_of_a_tree_are_bit_for_bit_those_of_its_branches(loaded: LoadedModel) -> None:
    """All layers, beside a chain in the same step: so greedy ids cannot differ from the plain path (I9)."""
    tree = entry(len(PROMPT), BRANCHES, BLOCKS, parents=PARENTS)
    other = Entry(2, 0, (7, 8, 9), (np.array([7], np.int32),), rows(3, 0))
    found = after_prompt(runner_of(loaded), StepPlan((other, tree)))[3:]
    for place in range(len(PARENTS)):
        path = [place]
        while PARENTS[path[0]] >= 0:
            path.insert(0, PARENTS[path[0]])
        chain = entry(len(PROMPT), tuple(BRANCHES[i] for i in path), BLOCKS)
        wanted = after_prompt(runner_of(loaded), StepPlan((chain,)))[-1]
        np.testing.assert_array_equal(found[place].view(np.uint32), wanted.view(np.uint32))


@pytest.mark.torch
@pytest.mark.parametrize("reach", [None, Reach(window=7), Reach(window=12, sinks=3)], ids=str)
def test_trees_agree_with_the_reference(loaded: LoadedModel, reach: Reach | None) -> None:
    plan = StepPlan((entry(len(PROMPT), BRANCHES, BLOCKS, parents=PARENTS),))
    got, wanted = (after_prompt(runner_of(loaded, "f32", reach, body), plan) for body in BODIES)
    assert far(got, wanted) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("reach", [Reach(window=16), Reach(window=16, sinks=4)], ids=str)
def test_what_is_behind_the_window_may_be_dropped(loaded: LoadedModel, reach: Reach) -> None:
    """The second block is -1 in the table by then, the first too when it holds no sinks."""
    left = [3 if reach.sinks else -1, -1, 1, 4]
    plan = StepPlan((entry(48, (60, 61, 62), left),))
    found = []
    for body in BODIES:
        runner = runner_of(loaded, "f32", reach, body)
        logits(runner, StepPlan((entry(0, tuple(range(5, 21)), BLOCKS),)))
        logits(runner, StepPlan((entry(16, tuple(range(21, 53)), BLOCKS),)))
        for pool in runner.pools:
            pool.block(9)[:] = 0xFF  # NaN, should anybody look
        found.append(logits(runner, plan))
        runner.close()
    assert far(*found) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("isa", native.ISAS)
def test_closed_blocks_agree_with_the_reference(tmp_path: Path, isa: str) -> None:
    """E7: the native body multiplies codes, the reference what they mean; only rounding q and weights lies between."""
    if isa not in native.instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    before = native.isa()
    native.set_isa(isa)
    try:
        wide = load(write_config(tmp_path, LLAMA | {"head_dim": 64, "num_attention_heads": 4}), weights="f32")
        tokens = tuple((31 * i) % 300 + 3 for i in range(126))
        table = np.arange(10, dtype=np.int32)
        found = {}
        for body in BODIES:
            runner = runner_of(wide, "hack", body=body)
            runner.collect(runner.submit(StepPlan((Entry(1, 0, tokens[:70], (table, table)),))))
            found[body] = logits(runner, StepPlan((Entry(1, 70, tokens[70:], (table, table), rows(56, 70)),)))
            runner.close()
    finally:
        native.set_isa(before)
    assert far(*found.values()) < 2e-2


@pytest.mark.torch
@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("isa", native.ISAS)
def test_quantised_kv_agrees_with_the_reference(loaded: LoadedModel, storage: str, isa: str) -> None:
    if isa not in native.instruction_sets():
        pytest.skip(f"this machine has no {isa}")
    before = native.isa()
    native.set_isa(isa)
    try:
        plan = StepPlan((entry(len(PROMPT), (60,), BLOCKS),))
        got, wanted = (after_prompt(runner_of(loaded, storage, body=body), plan) for body in BODIES)
    finally:
        native.set_isa(before)
    # A last bit of a key may fall on the other side of a step; one of 127, or of 15, in one dimension of one token.
    assert far(got, wanted) < (2e-3 if storage == "int8" else 2e-2)
    assert far(got, after_prompt(runner_of(loaded, "f32"), plan)) < (2e-2 if storage == "int8" else 0.3)


@pytest.mark.torch
def test_slots_that_are_not_positions_and_mass_agree_with_the_reference(loaded: LoadedModel) -> None:
    """Heavy hitters: positions go on, slots are packed, every kept token's mass grows by what it is read (C10)."""
    masses, found = [], []
    for body in BODIES:
        runner = runner_of(loaded, "f32", Reach(window=8, heavy=8), body)
        logits(runner, StepPlan((entry(0, PROMPT, BLOCKS),)))
        found.append(logits(runner, StepPlan((entry(90, (60, 61, 62), BLOCKS, slots=(20,)),))))
        mass = runner.pools[0].mass
        assert mass is not None
        masses.append(mass[[3, 9]].copy())
        runner.close()
    assert far(*found) < 1e-5
    np.testing.assert_allclose(masses[0], masses[1], rtol=1e-4, atol=1e-6)
    heads, layers = LLAMA["num_attention_heads"], LLAMA["num_hidden_layers"]
    total = sum(float(mass.sum()) for mass in masses[:1])
    assert 0 < total < heads * layers * (len(PROMPT) + 3)  # a row's weights sum to 1, some lie on slots overwritten


def test_impossible_trees_are_refused(loaded: LoadedModel) -> None:
    runner = runner_of(loaded)
    for parents, count in (((-1, 1), 2), ((0, 0), 2), ((-1,), 2), ((-1,) * 65, 65)):
        with pytest.raises(InvariantError, match="parents"):
            runner.submit(StepPlan((Entry(1, 0, (5,) * count, (np.arange(8, dtype=np.int32),), parents=parents),)))
    runner.close()

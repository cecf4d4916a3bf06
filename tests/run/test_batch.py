"""NativeBatch writes what differs from the last plan; whatever came before, the arrays are those of a fresh one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from ridgeline.kernels import native
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.run.arena import StepLimits
from ridgeline.run.batch import NativeBatch
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

pytestmark = pytest.mark.skipif(not native.is_available(), reason="needs the native library's structs")

LIMITS = StepLimits(tokens=64, logit_rows=16, sequences=4, context=96)
GROUPS = 2
SAMPLINGS = (
    Sampling(), Sampling(temperature=0.7, seed=3), Sampling(logit_bias={4: 1.5, 9: -2.0}),
    Sampling(repetition_penalty=1.2, logprobs=2),
)  # fmt: skip
# One table a sequence and group, as a memory hands them out: the same object until a block is added.
TABLES = [
    [tuple(np.arange(GROUPS * n + s, GROUPS * n + s + n, dtype=np.int32) for _ in range(GROUPS)) for n in range(7)]
    for s in range(4)
]


@some.composite
def plans(draw: some.DrawFn) -> StepPlan:
    entries = []
    for sequence in draw(some.permutations(range(4)))[: draw(some.integers(1, 4))]:
        count = draw(some.sampled_from((1, 1, 1, 2, 5)))
        start = draw(some.integers(0, 20))
        needed = -(-(start + count) // BLOCK_TOKENS)
        blocks = TABLES[sequence][draw(some.integers(needed, 6))]
        rows = tuple(draw(row(start, count)) for _ in range(draw(some.sampled_from((0, 1, 1, 2)))))
        slots = draw(some.sampled_from(((), (), (start // 2, start))))
        parents = draw(some.sampled_from(((), (), (-1, *(0,) * (count - 1)))))
        tokens = tuple(draw(some.lists(some.integers(0, 99), min_size=count, max_size=count)))
        entries.append(Entry(sequence, start, tokens, blocks, rows, slots=slots, parents=parents))
    return StepPlan(tuple(entries))


def row(start: int, count: int) -> some.SearchStrategy[LogitRow]:
    return some.builds(
        LogitRow, some.integers(0, count - 1), some.integers(start, start + 3), some.sampled_from(SAMPLINGS),
        choice=some.integers(0, 1), target=some.sampled_from((-1, -1, 5)), logprobs=some.sampled_from((-1, 2)),
        law=some.booleans(), history=some.sampled_from((None, ((7, 8, 7), 1))),
    )  # fmt: skip


def batch() -> NativeBatch:
    return NativeBatch(LIMITS, np.zeros(3, np.int64), GROUPS, None, vocabulary=10)


def written(one: NativeBatch, plan: StepPlan) -> dict[str, object]:
    """Everything that a native step reads of the plan."""
    struct, tokens, entries = one.struct, plan.tokens, len(plan.entries)
    rows = sum(len(entry.rows) for entry in plan.entries)
    tables = one._table[: GROUPS * entries * one._table_stride].reshape(GROUPS, entries, -1)
    needed = [
        [-(-(entry.slot(g) + len(entry.tokens)) // BLOCK_TOKENS) for entry in plan.entries] for g in range(GROUPS)
    ]
    sampling = one._sampling[:rows].copy()
    for begin, end in (("history_begin", "history_end"), ("bias_begin", "bias_end")):
        is_empty = sampling[begin] == sampling[end]  # wherever that is
        sampling[begin][is_empty] = sampling[end][is_empty] = 0
    found: dict[str, object] = {
        "sizes": (struct.tokens, struct.sequences, struct.logit_rows),
        "ids": one._ids[:tokens].tolist(), "positions": one._positions[:tokens].tolist(),
        "sequence_of": one._sequence_of[:tokens].tolist(), "first": one._first[: entries + 1].tolist(),
        "logit_token": one._logit_token[:rows].tolist(), "sampling": sampling.tolist(),
        "tables": [[tables[g, e, :n].tolist() for e, n in enumerate(counts)] for g, counts in enumerate(needed)],
        "slots": one._slots[: GROUPS * tokens].tolist() if struct.slots else None,
        "tree": one._tree[:tokens].tolist() if struct.tree else None,
    }  # fmt: skip
    if any(row.history is not None and row.target < 0 for entry in plan.entries for row in entry.rows):
        found["history"] = [array.tolist() for array in one._pointed]
    return found


@settings(deadline=None)
@given(some.lists(plans(), min_size=1, max_size=6))
def test_what_came_before_leaves_no_trace(steps: list[StepPlan]) -> None:
    used = batch()
    for plan in steps:
        fresh = batch()
        used.fill(plan)
        fresh.fill(plan)
        assert written(used, plan) == written(fresh, plan)


def test_a_refused_plan_leaves_no_trace() -> None:
    good = StepPlan((Entry(0, 3, (5,), TABLES[0][2], (LogitRow(0, 4, Sampling()),)),))
    used, fresh = batch(), batch()
    used.fill(good)
    for wrong in (
        Entry(1, 30, (5,) * 4, TABLES[1][2]),  # past its blocks
        Entry(1, 95, (5, 6), TABLES[1][6]),  # past the context
        Entry(1, 0, (5,) * 65, TABLES[1][6]),  # more tokens than a step may have
        Entry(1, 0, (5, 6), TABLES[1][2], parents=(0, -1)),  # a parent after its child
    ):
        with pytest.raises(InvariantError):
            used.fill(StepPlan((*good.entries, wrong)))
    used.fill(good)
    fresh.fill(good)
    assert written(used, good) == written(fresh, good)

"""Co-run: the binding rule's invariants in all orders of arrival (emulator), and the native queue against it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kernels import native

from .steps import Heads, Sequence, attend, pool_for
from .turns import PAGE, TILE, Queue, check, emulate, even, published

COUNTS = st.lists(st.integers(1, 9), max_size=7)
NOTHING = -(1 << 31)


@pytest.mark.parametrize("rule", [even, published])
def test_three_thousand_random_steps(rule) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3000):
        threads = int(rng.integers(1, 5))
        items = tuple(rng.integers(1, 10, rng.integers(0, 9)).tolist() for _ in range(2))
        queue = Queue(items, rule)  # type: ignore[arg-type]
        arrivals = rng.choice(threads, 2 * (sum(items[0]) + sum(items[1])), p=rng.dirichlet([0.5] * threads)).tolist()
        check(queue, emulate(queue, threads, arrivals))


@given(COUNTS, COUNTS, st.lists(st.integers(0, 2), max_size=80), st.sampled_from([even, published]))
@settings(max_examples=300, deadline=None)
def test_any_step_in_any_order_of_arrival(tiles, pages, arrivals, rule) -> None:
    queue = Queue((tiles, pages), rule)
    check(queue, emulate(queue, 3, arrivals))


def test_every_order_of_arrival_of_a_small_step() -> None:
    for arrivals in itertools.product(range(2), repeat=10):
        queue = Queue(([2, 1, 1], [1, 3, 1, 1]))
        check(queue, emulate(queue, 2, arrivals))


def test_the_published_rule_leaves_a_tail_where_the_even_one_leaves_none() -> None:
    def tail(rule) -> int:  # turns of one kind at the end, beside nothing
        (own,) = emulate(Queue(([1] * 10, [1] * 19), rule), 1, ())
        return len(list(itertools.takewhile(lambda turn: turn[0] == PAGE, reversed(own))))

    assert tail(published) == 10  # period 19 // 10 + 1 = 2: P D P D ..., then ten D alone
    assert tail(even) == 0  # the last turn is a tile's


# -- the native queue


def entries_of(heads: Heads, shapes: list[tuple[int, int]]) -> tuple[list[tuple[Sequence, int]], int]:
    """Entries of (tokens kept before, tokens now), filled pages."""
    entries, first = [], 0
    for index, (before, count) in enumerate(shapes):
        rng = np.random.default_rng([index, before])
        pages = -(-(before + count) // 16)
        qkv = rng.standard_normal((before + count, heads.width), np.float32)
        entries.append((Sequence(qkv, 0, np.arange(first, first + pages, dtype=np.int32)), before, count))
        first += pages
    return entries, first  # type: ignore[return-value]


TREE = (-1, *((place - 1) // 2 for place in range(1, 6)))  # of six tokens


def run_step(teams, heads: Heads, shapes, threads: int, **options) -> list[np.ndarray]:
    entries, blocks = entries_of(heads, shapes)
    _, pool = pool_for(heads, blocks)
    for sequence, before, _ in entries:
        if before:
            attend(teams(1), heads, pool, [(sequence, before)])
    return attend(teams(threads), heads, pool, [(sequence, count) for sequence, _, count in entries], **options)


def items_of(heads: Heads, shapes) -> tuple[list[int], list[int]]:
    """Turns of every item as attend.cpp cuts them: 96 rows, 256 keys a turn."""
    tiles, pages = [], []
    ratio = heads.heads // heads.kv_heads
    for before, count in shapes:
        rows = count * ratio
        for row in reversed(range(0, rows, 96)):
            last = before + (min(row + 96, rows) - 1) // ratio
            for _ in range(heads.kv_heads):
                if rows >= 13:
                    tiles.append(last // 256 + 1)
                else:
                    pages.append(last // 256 + 1)
    return tiles, pages


MIXED = [(300, 1), (0, 70), (520, 1), (40, 1), (200, 40), (700, 2)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shapes", [MIXED, MIXED[::-1], [(0, 200)], [(90, 1)] * 9], ids=["mixed", "back", "P", "D"])
def test_the_native_queue_draws_as_the_emulator_does(isa, teams, shapes, threads) -> None:
    heads = Heads(6, 2, 16)
    turns = np.full((threads, 500), NOTHING, np.int32)
    run_step(teams, heads, shapes, threads, turns=turns)
    drawn = [[(TILE, int(one)) if one >= 0 else (PAGE, -1 - int(one)) for one in row[row != NOTHING]] for row in turns]
    queue = Queue(items_of(heads, shapes))
    check(queue, drawn)
    if threads == 1:
        assert drawn == emulate(queue, 1, ())


@pytest.mark.parametrize("storage", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize(
    "heads", [Heads(6, 2, 16), Heads(9, 3, 64), Heads(8, 1, 80), Heads(6, 2, 16, window=90)], ids=str
)
def test_turns_change_no_bit(isa, teams, storage, heads) -> None:
    heads = dataclasses.replace(heads, storage=storage)
    shapes = [*MIXED, (130, len(TREE))]
    expected = run_step(teams, heads, shapes, 1, trees={len(MIXED): TREE})
    for threads in (1, 2, 3):
        turns = np.zeros((threads, 1), np.int32)
        out = run_step(teams, heads, shapes, threads, turns=turns, with_quant=True, trees={len(MIXED): TREE})
        for rows, wanted in zip(out, expected, strict=True):
            np.testing.assert_array_equal(rows.view(np.uint32), wanted.view(np.uint32))
    assert native.isa() == isa

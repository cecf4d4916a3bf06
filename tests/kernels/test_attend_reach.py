"""attend over what is not a plain prefix: trees (I9), sinks (C9), slots that are not positions, mass (C10)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kernels import native
from ridgeline.kit.errors import InvariantError

from .steps import Arena, Batch, Heads, Sequence, attend, instruction, pool_for, run
from .test_attend import SMALL, STORED, assert_close, kept, sequence_of

PAIRS = ((0, -1), (1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 3), (7, 6), (8, -1), (9, 8))  # (place, parent)
PARENTS = tuple(parent for _, parent in PAIRS)


def bits(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).view(np.uint32)


def path_to(parents: tuple[int, ...], place: int) -> list[int]:
    path = [place]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def alone(teams, heads: Heads, context: Sequence, rows: np.ndarray) -> np.ndarray:
    """`rows` as a chain behind the context, on a pool of its own: the plain path."""
    qkv = np.concatenate([context.qkv, rows])
    _, pool = pool_for(heads, len(context.pages))
    sequence = Sequence(qkv, 0, context.pages)
    if len(context.qkv):
        attend(teams(1), heads, pool, [(sequence, len(context.qkv))])
    return attend(teams(1), heads, pool, [(sequence, len(rows))])[0]


def check_tree(teams, heads: Heads, context: int, parents: tuple[int, ...], threads: int = 2, **options) -> None:
    """Every row of the tree has the bits it has when its branch is computed alone."""
    pages = np.random.default_rng(context).permutation(-(-(context + len(parents)) // 16)).astype(np.int32)
    whole = sequence_of(heads, context + len(parents), pages, seed=9)
    before = Sequence(whole.qkv[:context], 0, pages)
    _, pool = pool_for(heads, len(pages))
    if context:
        attend(teams(threads), heads, pool, [(whole, context)])
    rows = attend(teams(threads), heads, pool, [(whole, len(parents))], trees={0: parents}, **options)[0]
    for place in range(len(parents)):
        path = path_to(parents, place)
        expected = alone(teams, heads, before, whole.qkv[context:][path])[-1]
        np.testing.assert_array_equal(bits(rows[place]), bits(expected), f"place {place} of {parents}")


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("context", [0, 5, 60, 251])
def test_a_tree_gives_every_token_the_bits_of_its_branch_alone(isa, teams, storage, context) -> None:
    heads = dataclasses.replace(SMALL, storage=storage)
    check_tree(teams, heads, context, PARENTS)
    check_tree(teams, heads, context, PARENTS, threads=3, scratch_bytes=64)


@pytest.mark.parametrize(("window", "sinks"), [(4, 0), (20, 0), (20, 3), (64, 20)])
@pytest.mark.parametrize("context", [0, 17, 130])
def test_a_tree_behind_a_window_is_its_branches_alone(isa, teams, window, sinks, context) -> None:
    heads = dataclasses.replace(SMALL, window=window, sinks=sinks, rope=rope_tables(SMALL.dim))
    check_tree(teams, heads, context, PARENTS)


@given(data=st.data(), context=st.integers(0, 70), ratio=st.sampled_from([1, 3, 7]))
@settings(max_examples=25, deadline=None)
def test_any_tree_of_at_most_64_tokens(teams, data, context, ratio) -> None:
    count = data.draw(st.integers(1, 64))
    parents = (-1, *(data.draw(st.integers(max(-1, place - 9), place - 1)) for place in range(1, count)))
    check_tree(teams, Heads(2 * ratio, 2, 16), context, parents)


def test_chains_and_trees_share_a_batch(isa, teams) -> None:
    """A mask of 0 is a chain; entries of more than 64 tokens are chains whatever stands there."""
    pages = [np.arange(10 * i, 10 * i + 10) for i in range(3)]
    sequences = [sequence_of(SMALL, 140, pages[i].astype(np.int32), seed=i) for i in range(3)]
    expected = []
    for sequence, counts in zip(sequences, ((40, 10), (30, 100), (3, 7)), strict=True):
        _, pool = pool_for(SMALL, 30)
        own = dataclasses.replace(sequence)
        attend(teams(1), SMALL, pool, [(own, counts[0])])
        trees = {0: PARENTS} if counts == (40, 10) else None
        expected.append(attend(teams(1), SMALL, pool, [(own, counts[1])], trees=trees)[0])
    _, pool = pool_for(SMALL, 30)
    attend(teams(2), SMALL, pool, list(zip(sequences, (40, 30, 3), strict=True)))
    rows = attend(teams(2), SMALL, pool, list(zip(sequences, (10, 100, 7), strict=True)), trees={0: PARENTS})
    for got, wanted in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(bits(got), bits(wanted))


# -- sinks


def rope_tables(dim: int, positions: int = 700) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def with_sinks(heads: Heads, qkv: np.ndarray) -> np.ndarray:
    """[tokens, heads * dim] in float64: towards sinks, q stands where it would if the window followed them at once."""
    tokens, half = len(qkv), heads.dim // 2
    q, k, v = np.split(qkv, [heads.heads * heads.dim, (heads.heads + heads.kv_heads) * heads.dim], 1)
    k, v = kept(heads, k), kept(heads, v)
    q = q.reshape(tokens, heads.kv_heads, -1, heads.dim).astype(np.float64)
    k, v = (part.reshape(tokens, heads.kv_heads, heads.dim).astype(np.float64) for part in (k, v))
    back = np.maximum(0, np.arange(tokens) - (heads.sinks + heads.window - 1))
    cos, sin = (table[back][:, None, None, :].astype(np.float64) for table in heads.rope)
    a, b = q[..., :half], q[..., half:]
    turned = np.concatenate([a * cos + b * sin, b * cos - a * sin], -1)
    places = np.arange(tokens)
    scores = (
        np.where(places < heads.sinks, np.einsum("tkgd,ckd->kgtc", turned, k), np.einsum("tkgd,ckd->kgtc", q, k))
        * heads.dim**-0.5
    )
    behind = places[:, None] - places[None, :]
    seen = (behind >= 0) & ((behind < heads.window) | (places < heads.sinks))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("kgtc,ckd->tkgd", weights / weights.sum(-1, keepdims=True), v).reshape(tokens, -1)


def chunks_of(teams, heads: Heads, tokens: int, sizes: list[int], threads: int = 2, **options) -> np.ndarray:
    sequence = sequence_of(heads, tokens, np.random.default_rng(1).permutation(-(-tokens // 16)))
    _, pool = pool_for(heads, len(sequence.pages))
    out = []
    while sequence.kept < tokens:
        count = min(sizes[min(len(out), len(sizes) - 1)], tokens - sequence.kept)
        out += attend(teams(threads), heads, pool, [(sequence, count)], **options)
    return np.concatenate(out)


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize(("window", "sinks"), [(1, 1), (20, 4), (100, 4), (64, 70), (300, 1)])
def test_sinks_equal_float64_and_their_bits_do_not_depend_on_chunks(isa, teams, storage, window, sinks) -> None:
    """Pages between the sinks and the window are -1 in the table (steps.attend), so nobody can have read them."""
    heads = dataclasses.replace(SMALL, storage=storage, window=window, sinks=sinks, rope=rope_tables(SMALL.dim))
    whole = chunks_of(teams, heads, 340, [340], threads=1)
    assert_close(storage, whole, with_sinks(heads, sequence_of(heads, 340, np.arange(22)).qkv))
    for sizes, threads, scratch in (([300, 1], 2, 1 << 22), ([64, 1, 100, 7, 40], 3, 1 << 22), ([17], 2, 64)):
        out = chunks_of(teams, heads, 340, sizes, threads=threads, scratch_bytes=scratch)
        np.testing.assert_array_equal(bits(out), bits(whole), str(sizes))


def test_sinks_are_exact_until_something_is_dropped(isa, teams) -> None:
    heads = dataclasses.replace(SMALL, window=50, sinks=4, rope=rope_tables(SMALL.dim))
    everything = chunks_of(teams, SMALL, 80, [80])
    some = chunks_of(teams, heads, 80, [80])
    np.testing.assert_array_equal(bits(some[:54]), bits(everything[:54]))
    assert (bits(some[54:]) != bits(everything[54:])).any(1).all()


# -- slots


@pytest.mark.parametrize("storage", ["bf16", "int4"])
def test_slots_not_positions_say_where_keys_are_and_which_are_seen(isa, teams, storage) -> None:
    heads = dataclasses.replace(SMALL, storage=storage)
    expected = chunks_of(teams, heads, 90, [40, 1])
    np.testing.assert_array_equal(bits(chunks_of(teams, heads, 90, [40, 1], shift=1000)), bits(expected))


def test_two_groups_have_tables_and_slots_of_their_own(isa, teams) -> None:
    """Two attend lines on pools of different layers, heads and storages, both 16 slots before the positions."""
    first, second = Heads(4, 2, 16), Heads(2, 1, 24, storage="int8")
    pools = [pool_for(first, 4)[0], pool_for(second, 3, layers=2)[0]]
    rng = np.random.default_rng(0)
    qkv = [rng.standard_normal((20, heads.width), np.float32) for heads in (first, second)]
    expected = []
    for heads, rows, layer in ((first, qkv[0], 0), (second, qkv[1], 1)):
        _, pool = pool_for(heads, 4, layers=2)
        expected.append(
            attend(teams(1), heads, pool, [(Sequence(rows, 0, np.arange(4, dtype=np.int32)), 20)], layer=layer)[0]
        )
    arena, ops, outs = Arena(), [], []
    for group, heads in enumerate((first, second)):
        width = heads.heads * heads.dim
        outs.append(arena.room(20 * width * 4))
        op = instruction(
            native.RL_ATTEND, source=arena.place(qkv[group]), out=outs[-1], width_in=heads.width, width_out=width,
            heads=heads.heads, kv_heads=heads.kv_heads, head_dim=heads.dim, scale=heads.dim**-0.5, layer=group,
            group=group,
        )  # fmt: skip
        ops.append(op)
    batch = Batch(
        20, positions=np.arange(16, 36, dtype=np.int32), sequence_of=np.zeros(20, np.int32),
        first_token=np.array([0, 20], np.int32),
        slots=np.stack([np.arange(20), np.arange(20)]).astype(np.int32),
        block_table=np.array([[[3, 1, -1]], [[0, 2, -1]]], np.int32),
    )  # fmt: skip
    batch.struct.table_stride = 3
    run(teams(2), ops, arena, batch, native.Pools(pools))
    for out, heads, wanted in zip(outs, (first, second), expected, strict=True):
        np.testing.assert_array_equal(bits(arena.read(out, 20, heads.heads * heads.dim)), bits(wanted))


# -- mass


def masses(teams, heads: Heads, lengths: list[int], cuts: list[int], threads: int) -> list[np.ndarray]:
    """Per sequence [kv_heads, tokens], after steps in which all sequences run side by side."""
    pages = np.random.default_rng(2).permutation(7 * len(lengths)).astype(np.int32)
    sequences = [sequence_of(heads, n, pages[7 * i : 7 * i + 7], seed=n) for i, n in enumerate(lengths)]
    kv, pool = pool_for(heads, len(pages), layers=2, has_mass=True)
    assert kv.mass is not None
    kv.mass[:] = np.nan
    step = 0
    while any(s.kept < len(s.qkv) for s in sequences):
        left = [s for s in sequences if s.kept < len(s.qkv)]
        entries = [(s, min(cuts[(step + i) % len(cuts)], len(s.qkv) - s.kept)) for i, s in enumerate(left)]
        attend(teams(threads), heads, pool, entries, layer=1)
        step += 1
    assert np.isnan(kv.mass[:, 0]).all()
    return [
        kv.mass[s.pages, 1].transpose(1, 0, 2).reshape(heads.kv_heads, -1)[:, : len(s.qkv)].copy() for s in sequences
    ]


@pytest.mark.parametrize("storage", STORED)
def test_mass_is_the_sum_of_weights_and_its_bits_do_not_depend_on_the_schedule(isa, teams, storage) -> None:
    heads = dataclasses.replace(SMALL, storage=storage)
    lengths = [100, 37, 64]
    together = masses(teams, heads, lengths, [30, 1, 17], 3)
    for length, mass in zip(lengths, together, strict=True):
        np.testing.assert_array_equal(bits(masses(teams, heads, [length], [length], 1)[0]), bits(mass))
        qkv = sequence_of(heads, length, np.arange(7), seed=length).qkv
        q, k, _ = np.split(qkv, [heads.heads * heads.dim, (heads.heads + heads.kv_heads) * heads.dim], 1)
        k = kept(heads, k).reshape(length, heads.kv_heads, heads.dim).astype(np.float64)
        scores = np.einsum("tkgd,ckd->kgtc", q.reshape(length, heads.kv_heads, -1, heads.dim).astype(np.float64), k)
        weights = np.exp(np.where(np.tri(length, dtype=bool), scores * heads.dim**-0.5, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(mass, weights.sum((1, 2)), rtol=2e-5)


# -- refusals


def test_bad_batches_are_refused_before_anything_is_touched(teams) -> None:
    heads = dataclasses.replace(SMALL, window=20, sinks=4)
    kv, pool = pool_for(heads, 4)
    good = {
        "positions": np.arange(40, 44, dtype=np.int32), "sequence_of": np.zeros(4, np.int32),
        "first_token": np.array([0, 4], np.int32), "block_table": np.array([0, 1, 2], np.int32),
        "slots": np.arange(40, 44, dtype=np.int32), "tree": np.array([1, 3, 7, 15], np.uint64),
    }  # fmt: skip
    bad: list[dict[str, list[int]]] = [
        {"block_table": [-1, 1, 2]},  # holds the sinks
        {"block_table": [0, -1, 2]},  # begins inside the window of the first token
        {"block_table": [0, 1, 4]},
        {"slots": [40, 41, 43, 44]},
        {"slots": [46, 47, 48, 49]},  # outside the table
        {"positions": [40, 41, 42, 44]},
        {"positions": [-4, -3, -2, -1]},
        {"tree": [1, 3, 3, 15]},  # a token that does not see itself
        {"tree": [1, 7, 7, 15]},  # or one behind it
        {"tree": [1, 3, 5, 15]},  # depth 1 at depth 2's position
    ]
    for change in ({}, *bad):
        arrays = good | {name: np.array(value, good[name].dtype) for name, value in change.items()}
        arena = Arena()
        source = arena.place(np.zeros((4, heads.width), np.float32))
        op = instruction(
            native.RL_ATTEND, source=source, out=arena.room(4 * 96 * 4), width_in=heads.width, width_out=96, heads=6,
            kv_heads=2, head_dim=16, window=20, sinks=4, scale=1.0,
        )  # fmt: skip
        batch = Batch(4, **arrays)
        batch.struct.table_stride = 3
        before = kv.data.copy()
        if not change:
            run(teams(2), [op], arena, batch, pool)
            continue
        with pytest.raises(InvariantError, match="a batch with a token"):
            run(teams(2), [op], arena, batch, pool)
        assert (kv.data == before).all(), change


def test_mass_knows_no_trees_and_no_sinks(teams) -> None:
    for sinks, trees, fault in ((4, None, "no KV pool"), (0, {0: (-1, -1)}, "a batch with a token")):
        heads = dataclasses.replace(SMALL, window=20 if sinks else 0, sinks=sinks)
        _, pool = pool_for(heads, 2, has_mass=True)
        with pytest.raises(InvariantError, match=fault):
            attend(teams(1), heads, pool, [(sequence_of(heads, 2, np.arange(2)), 2)], trees=trees)

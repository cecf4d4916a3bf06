"""attend: right against float64 over the stored pages, and the same bits whatever the schedule (promise 1).

Every pool starts full of NaN bytes, so reading what nobody wrote would show at once.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kernels import native
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES
from ridgeline.ops.attend import ATTEND

from .company import assert_same_alone
from .steps import Heads, Sequence, attend, pool_for

SMALL = Heads(6, 2, 16)
STORED = ("f32", "bf16", "int8", "int4")


def sequence_of(heads: Heads, tokens: int, pages: np.ndarray, seed: int = 0) -> Sequence:
    qkv = np.random.default_rng([seed, heads.width]).standard_normal((tokens, heads.width), np.float32) * 2
    return Sequence(qkv, 0, pages.astype(np.int32))


def kept(heads: Heads, rows: np.ndarray) -> np.ndarray:
    """[tokens, kv_heads * dim] as the storage gives them back."""
    storage = STORAGES.get(heads.storage)
    vectors = rows.reshape(-1, heads.dim)
    padded = np.concatenate([vectors, np.zeros((-len(vectors) % BLOCK_TOKENS, heads.dim), np.float32)])
    pages = [
        storage.unpack_values(storage.pack_values(page), heads.dim)
        for page in padded.reshape(-1, BLOCK_TOKENS, heads.dim)
    ]
    return np.concatenate(pages)[: len(vectors)].reshape(rows.shape)


def exact(heads: Heads, qkv: np.ndarray) -> np.ndarray:
    """[tokens, heads * dim] in float64; K and V rounded as the storage rounds."""
    tokens = len(qkv)
    q, k, v = np.split(qkv, [heads.heads * heads.dim, (heads.heads + heads.kv_heads) * heads.dim], 1)
    k, v = kept(heads, k), kept(heads, v)
    q = q.reshape(tokens, heads.kv_heads, -1, heads.dim).astype(np.float64)
    k, v = (part.reshape(tokens, heads.kv_heads, heads.dim).astype(np.float64) for part in (k, v))
    scores = np.einsum("tkgd,ckd->kgtc", q, k) * heads.dim**-0.5
    behind = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    seen = (behind >= 0) & ((behind < heads.window) if heads.window else True)
    weights = np.exp(np.where(seen, scores, -np.inf) - np.where(seen, scores, -np.inf).max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("kgtc,ckd->tkgd", weights, v).reshape(tokens, -1)


def assert_close(storage: str, out: np.ndarray, expected: np.ndarray) -> None:
    """A fifth of what ops/attend.py allows, of the largest output; the tenfold for int8 is AVX-512's alone."""
    name = storage if native.isa().startswith("avx512") else "f32"
    np.testing.assert_allclose(out, expected, rtol=0, atol=ATTEND.error_for(name) / 5 * np.abs(expected).max())


def run_chunks(team, heads, tokens, chunks, *, pages=None, **options) -> np.ndarray:
    """All tokens of one sequence, `chunks` at a time (the last size repeats)."""
    pages = np.arange((tokens + 15) // 16) if pages is None else pages
    _, pool = pool_for(heads, int(pages.max()) + 1)
    sequence = sequence_of(heads, tokens, pages)
    out = []
    for step in range(tokens):
        count = min(chunks[min(step, len(chunks) - 1)], tokens - sequence.kept)
        if count:
            out += attend(team, heads, pool, [(sequence, count)], **options)
    return np.concatenate(out)


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize(
    "heads", [SMALL, Heads(9, 3, 64), Heads(4, 4, 8), Heads(14, 2, 24), Heads(8, 1, 80), Heads(2, 1, 256)], ids=str
)
def test_one_pass_equals_float64(isa, teams, storage, heads) -> None:
    heads = dataclasses.replace(heads, storage=storage)
    for tokens in (1, 15, 16, 17, 63, 65, 130):
        out = run_chunks(teams(2), heads, tokens, [tokens])
        assert_close(storage, out, exact(heads, sequence_of(heads, tokens, np.arange(9)).qkv))


@pytest.mark.parametrize("window", [1, 15, 16, 17, 64, 100, 300])
@pytest.mark.parametrize("storage", STORED)
def test_windows_equal_float64_and_never_read_behind_themselves(isa, teams, storage, window) -> None:
    heads = dataclasses.replace(SMALL, storage=storage, window=window)
    expected = exact(heads, sequence_of(heads, 330, np.arange(21)).qkv)
    for chunks in ([330], [64, 1, 100, 7, 40]):
        assert_close(storage, run_chunks(teams(3), heads, 330, chunks), expected)


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("heads", [SMALL, Heads(9, 3, 64)], ids=str)
def test_bits_do_not_depend_on_chunks_splits_tables_or_threads(isa, teams, storage, heads) -> None:
    heads = dataclasses.replace(heads, storage=storage)
    tokens = 531  # over two split edges
    whole = run_chunks(teams(1), heads, tokens, [tokens])
    shuffled = np.random.default_rng(3).permutation(60)
    for chunks, threads, pages in (
        ([1], 1, None),
        ([1], 2, shuffled),
        ([255, 1, 1, 200, 7], 3, shuffled),
        ([17], 5, None),
        ([256, 256], 2, None),
        ([511, 1], 3, None),
    ):
        out = run_chunks(teams(threads), heads, tokens, chunks, pages=pages)
        np.testing.assert_array_equal(out.view(np.uint32), whole.view(np.uint32), str((chunks, threads)))
    # Without room for partial results every item runs its splits itself: the same merge, the same bits.
    out = run_chunks(teams(2), heads, tokens, [500, 1], scratch_bytes=64)
    np.testing.assert_array_equal(out.view(np.uint32), whole.view(np.uint32))


@given(
    lengths=st.lists(st.integers(1, 90), min_size=2, max_size=5),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    threads=st.integers(1, 3),
    window=st.sampled_from([0, 0, 20, 70]),
    storage=st.sampled_from(STORED),
)
@settings(max_examples=40, deadline=None)
def test_bits_do_not_depend_on_the_other_sequences(teams, lengths, cuts, threads, window, storage) -> None:
    heads = dataclasses.replace(SMALL, window=window, storage=storage)
    pages = np.random.default_rng(len(lengths)).permutation(6 * len(lengths)).reshape(-1, 6)
    sequences = [sequence_of(heads, length, pages[i], i) for i, length in enumerate(lengths)]
    assert_same_alone(teams, heads, sequences, cuts, threads, pages.size)


@pytest.mark.parametrize("storage", STORED)
def test_pages_hold_exactly_what_the_storage_would_have_written(isa, teams, storage) -> None:
    heads = dataclasses.replace(SMALL, storage=storage)
    kv, pool = pool_for(heads, 3, layers=2)
    sequence = sequence_of(heads, 32, np.array([2, 0]))
    attend(teams(2), heads, pool, [(sequence, 32)], layer=1)
    k, v = (
        sequence.qkv[:, begin : begin + heads.dim * heads.kv_heads].reshape(32, heads.kv_heads, heads.dim)
        for begin in (heads.heads * heads.dim, (heads.heads + heads.kv_heads) * heads.dim)
    )
    for page, block in enumerate((2, 0)):
        for head in range(heads.kv_heads):
            rows = slice(16 * page, 16 * page + 16)
            np.testing.assert_array_equal(kv.keys(block, 1, head), kv.storage.pack_keys(k[rows, head]))
            np.testing.assert_array_equal(kv.values(block, 1, head), kv.storage.pack_values(v[rows, head]))
            assert (kv.keys(block, 0, head) == 0xFF).all() and (kv.keys(1, 1, head) == 0xFF).all()


@pytest.mark.parametrize("heads", [Heads(9, 3, 64), Heads(4, 2, 16)], ids=["groups in heads", "groups across heads"])
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_the_quantised_copy_is_that_of_the_output(isa, teams, heads, tokens) -> None:
    for outlier in (0.0, 2.5):
        run_chunks(teams(3), heads, tokens, [tokens], with_quant=True, outlier=outlier)


def test_huge_scores_neither_overflow_nor_lose_the_largest(isa, teams) -> None:
    heads = Heads(1, 1, 16, storage="f32")
    qkv = np.zeros((70, heads.width), np.float32)
    qkv[:, :16] = 100.0
    qkv[:, 16:32] = np.linspace(-50, 50, 70, dtype=np.float32)[:, None]
    qkv[:, 32:] = np.arange(70, dtype=np.float32)[:, None]
    _, pool = pool_for(heads, 5)
    rows = attend(teams(1), heads, pool, [(Sequence(qkv, 0, np.arange(5, dtype=np.int32)), 70)])[0]
    np.testing.assert_array_equal(rows, qkv[:, 32:])  # each token attends to itself alone

"""Attention over closed blocks (E7): what products of codes come to, and the same bits whatever the schedule.

The oracle multiplies what codes mean (dequantise, then multiply) in float64, with queries and weights rounded as the
kernel rounds them: rtol 1e-4 as in HACK's own test, and a tenth of its atol.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kernels import native
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.storage.bf16 import narrow, widen
from ridgeline.memory.storage.storage import make_storage

from .company import assert_same_alone
from .steps import Heads, Sequence, attend, pool_for

STORED = ("hack:group=64,sinks=4", "hack:group=32,sinks=4", "hack:group=32,sinks=0")
SHAPES = (Heads(9, 3, 64), Heads(4, 1, 128), Heads(2, 2, 192), Heads(7, 1, 64))


def sequence_of(heads: Heads, tokens: int, pages: np.ndarray, seed: int = 0) -> Sequence:
    rng = np.random.default_rng([seed, heads.width])
    qkv = rng.standard_normal((tokens, heads.width), np.float32)
    at = heads.heads * heads.dim
    qkv[:, at : at + heads.kv_heads * heads.dim] += 2 * rng.standard_normal(heads.kv_heads * heads.dim, np.float32)
    return Sequence(qkv, 0, pages.astype(np.int32))


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x as 8 bits under a scale and low of its own along the last axis, as the kernel rounds: f32 all the way. And a
    step where x lies so near a tie that float error may have rounded it the other way, else 0."""
    low = x.min(-1, keepdims=True)
    scale = ((x.max(-1, keepdims=True) - low) / np.float32(255)).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 1e-30)
    codes = (x - low) * inverse
    return np.rint(codes) * scale.astype(np.float64) + low, np.where(np.abs(codes % 1 - 0.5) < 2e-3, scale, 0)


def expected(heads: Heads, qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[tokens, heads * dim] in float64, and what ties may make of it."""
    tokens, dim = len(qkv), heads.dim
    q, k, v = np.split(qkv, [heads.heads * dim, (heads.heads + heads.kv_heads) * dim], 1)
    q = (q * np.float32(dim**-0.5)).reshape(tokens, heads.kv_heads, -1, dim)
    k, v = (widen(narrow(part)).reshape(tokens, heads.kv_heads, dim) for part in (k, v))
    out = [expected_head(heads.storage, q[:, h], k[:, h], v[:, h]) for h in range(heads.kv_heads)]
    return tuple(np.stack(parts, 1).reshape(tokens, -1) for parts in zip(*out, strict=True))  # type: ignore[return-value]


def expected_head(name: str, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of one kv head: q [tokens, ratio, dim], k and v [tokens, dim]."""
    storage, (tokens, _, dim) = make_storage(name), q.shape
    group, places = storage.group, np.arange(tokens)
    near = np.einsum("tgd,cd->tgc", q.astype(np.float64), k)
    scores, closed = near.copy(), []
    for begin in range(0, tokens // group * group, group):
        block = slice(begin, begin + group)
        keys = storage.close_keys(k[block], is_first=begin == 0)
        closed.append((block, storage.close_values(v[block], is_first=begin == 0)))
        turned = rounded((q * keys.scale).reshape(tokens, -1, dim // group, group))[0].reshape(q.shape)
        scores[..., block] = turned @ keys.codes.T.astype(np.float64) + (q @ keys.low[0].astype(np.float64))[..., None]
    is_near = (places[None] >= places[:, None] // group * group) | (places < storage.sinks)
    scores = np.where(is_near[:, None], near, scores)
    scores = np.where((places[None] <= places[:, None])[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = (weights * is_near[:, None]) @ v
    unsure = np.zeros_like(out)
    for block, values in closed:
        far = np.where(is_near[:, None, block], 0, weights[..., block]).astype(np.float32)
        for begin in range(0, dim, group):
            dims, codes = slice(begin, begin + group), values.codes[:, begin : begin + group].astype(np.float64)
            weighted, tied = rounded(far * values.scale[:, begin])
            out[..., dims] += weighted @ codes + (far.astype(np.float64) @ values.low[:, begin])[..., None]
            unsure[..., dims] += tied @ codes
    total = weights.sum(-1, keepdims=True)
    return out / total, unsure / total


def run_chunks(team: native.Team, heads: Heads, tokens: int, chunks: list[int], **options: Any) -> np.ndarray:
    pages = options.pop("pages", np.arange(-(-tokens // 16)))
    _, pool = pool_for(heads, int(pages.max()) + 1)
    sequence, out, step = sequence_of(heads, tokens, pages), [], 0
    while sequence.kept < tokens:
        count = min(chunks[min(step, len(chunks) - 1)], tokens - sequence.kept)
        out += attend(team, heads, pool, [(sequence, count)], **options)
        step += 1
    return np.concatenate(out)


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_products_of_codes_are_products_of_what_they_mean(isa, teams, storage, heads) -> None:
    heads = dataclasses.replace(heads, storage=storage)
    for tokens in (1, 17, 63, 64, 65, 150):
        out = run_chunks(teams(2), heads, tokens, [tokens])
        wanted, unsure = expected(heads, sequence_of(heads, tokens, np.arange(10)).qkv)
        assert (np.abs(out - wanted) <= 1e-4 + 1e-4 * np.abs(wanted) + 1.01 * unsure).all(), tokens


@pytest.mark.parametrize("storage", STORED)
def test_bits_do_not_depend_on_chunks_splits_tables_or_threads(isa, teams, storage) -> None:
    heads, tokens = Heads(9, 3, 64, storage=storage), 531  # over two split edges
    whole = run_chunks(teams(1), heads, tokens, [tokens])
    shuffled = np.random.default_rng(3).permutation(60)
    for chunks, threads, pages in (
        ([1], 2, shuffled), ([255, 1, 1, 200, 7], 3, shuffled), ([17], 2, None), ([64], 2, None), ([511, 1], 3, None),
    ):  # fmt: skip
        options = {} if pages is None else {"pages": pages}
        out = run_chunks(teams(threads), heads, tokens, chunks, **options)
        np.testing.assert_array_equal(out.view(np.uint32), whole.view(np.uint32), str((chunks, threads)))
    out = run_chunks(teams(2), heads, tokens, [500, 1], scratch_bytes=64)
    np.testing.assert_array_equal(out.view(np.uint32), whole.view(np.uint32))


@given(
    lengths=st.lists(st.integers(1, 150), min_size=2, max_size=4),
    cuts=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    threads=st.integers(1, 3),
    storage=st.sampled_from(STORED),
)
@settings(max_examples=20, deadline=None)
def test_bits_do_not_depend_on_the_other_sequences(teams, lengths, cuts, threads, storage) -> None:
    heads = Heads(6, 2, 64, storage=storage)
    pages = np.random.default_rng(len(lengths)).permutation(10 * len(lengths)).reshape(-1, 10)
    sequences = [sequence_of(heads, length, pages[i], i) for i, length in enumerate(lengths)]
    assert_same_alone(teams, heads, sequences, cuts, threads, pages.size)


@pytest.mark.parametrize("storage", STORED)
def test_pages_hold_what_the_storage_would_have_written_and_nothing_else_is(isa, teams, storage) -> None:
    """No page is ever widened: beside codes only the 16 bits that came are written, and of whole blocks once."""
    heads = Heads(4, 2, 64, storage=storage)
    kept = make_storage(storage)
    kv, pools = pool_for(heads, 12, layers=2)
    recent = pools.kept[1]
    sequence = sequence_of(heads, 150, np.random.default_rng(0).permutation(12))
    for count in (70, 1, 79):
        attend(teams(2), heads, pools, [(sequence, count)], layer=1)
    k, v = (
        widen(narrow(sequence.qkv[:, begin : begin + 128])).reshape(150, 2, 64)
        for begin in (heads.heads * 64, (heads.heads + 2) * 64)
    )
    whole = 150 // kept.group * kept.group
    for head in range(2):
        for begin in range(0, whole, kept.group):
            block, first = slice(begin, begin + kept.group), begin // 16
            blocks = sequence.pages[first : first + kept.group // 16]
            keys, values = (
                kept.pack_keys(k[block, head], is_first=not begin),
                kept.pack_values(v[block, head], is_first=not begin),
            )
            for page, key_page, value_page in zip(blocks, keys, values, strict=True):
                np.testing.assert_array_equal(kv.keys(page, 1, head), key_page)
                np.testing.assert_array_equal(kv.values(page, 1, head), value_page)
    unused = [page for page in range(12) if page not in sequence.pages[: whole // 16]]
    assert all((kv.block(page)[: kv.layer_stride] == 0xFF).all() for page in range(12))  # the other layer
    assert all((kv.block(page) == 0xFF).all() for page in unused)
    stored = recent.storage
    for place in range(150 // 16):
        page, rows = sequence.pages[place], slice(16 * place, 16 * place + 16)
        np.testing.assert_array_equal(recent.values(page, 1, 1), stored.pack_values(v[rows, 1]))


def test_steps_that_cannot_be_are_refused(teams) -> None:
    heads = Heads(4, 2, 64, storage=STORED[0])
    _, pools = pool_for(heads, 4)
    sequence = sequence_of(heads, 64, np.array([0, 1, 2, 9]))  # there is no block 9
    with pytest.raises(InvariantError, match="out of range"):
        attend(teams(1), heads, pools, [(sequence, 64)])
    with pytest.raises(InvariantError, match="out of range"):
        attend(teams(1), heads, pools, [(sequence_of(heads, 8, np.arange(4)), 8)], trees={0: (-1, 0, 0, 1, 2, 3, 4, 5)})
    lonely = native.Pools(pools.kept[:1])
    with pytest.raises(InvariantError, match="KV pool"):
        attend(teams(1), heads, lonely, [(sequence_of(heads, 8, np.arange(4)), 8)])

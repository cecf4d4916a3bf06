"""sample: equal to the statement in ops/sample.py, written out here in float64 NumPy."""

# size: every sampling option is an argument

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kernels import native
from ridgeline.ops.sample import uniform

from .steps import Arena, Batch, instruction, run


@dataclass(frozen=True)
class Row:
    """One logit row's wishes; history is (token, count in the output)."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0
    position: int = 0
    target: int = -1
    logprobs: int = -1
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    history: tuple[tuple[int, int], ...] = ()
    bias: tuple[tuple[int, float], ...] = ()
    allowed: tuple[int, ...] = ()  # the mask; (): all may be chosen


@dataclass
class Answers:
    tokens: np.ndarray
    logprob: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    laws: np.ndarray


def sample(team: native.Team, logits: np.ndarray, rows: list[Row]) -> Answers:
    count, vocabulary = logits.shape
    structs = (native.RlSampling * count)()
    history: list[tuple[int, int]] = []
    bias: list[tuple[int, float]] = []
    for struct, row in zip(structs, rows, strict=True):
        for name in (f.name for f in dataclasses.fields(Row) if f.name not in ("history", "bias", "allowed")):
            setattr(struct, name, getattr(row, name))
        struct.history_begin, struct.bias_begin = len(history), len(bias)
        history += row.history
        bias += row.bias
        struct.history_end, struct.bias_end = len(history), len(bias)
    answers = Answers(
        np.full(count, -7, np.int32), np.zeros(count, np.float32), np.zeros(count, np.int32),
        np.zeros((count, 20), np.int32), np.zeros((count, 20), np.float32), np.full((count, vocabulary), 7, np.float32),
    )  # fmt: skip
    for place, struct in enumerate(structs):
        struct.law = place + 1
        struct.mask = place + 1 if rows[place].allowed else 0
    batch = Batch(0, count)
    batch.struct.sampling = native.ctypes.addressof(structs)
    batch["history_ids"] = np.array([token for token, _ in history] or [0], np.int32)
    batch["history_counts"] = np.array([times for _, times in history] or [0], np.int32)
    batch["bias_ids"] = np.array([token for token, _ in bias] or [0], np.int32)
    batch["bias_values"] = np.array([value for _, value in bias] or [0], np.float32)
    batch["sampled"], batch["logprob"], batch["rank"] = answers.tokens, answers.logprob, answers.rank
    batch["top_ids"], batch["top_logprobs"] = answers.top_ids, answers.top_logprobs
    batch["laws"] = answers.laws
    batch["masks"] = np.stack([mask_of(row.allowed, vocabulary) for row in rows])
    arena = Arena()
    source = arena.place(logits)
    scratch = native.scratch_bytes(team.threads, 1, 16, 1, 8, vocabulary)
    op = instruction(native.RL_SAMPLE, source=source, width_in=vocabulary, width_out=1, per_logit_row=1)
    run(team, [op], arena, batch, scratch_bytes=scratch, kept=(structs,))
    np.testing.assert_array_equal(arena.read(source, count, vocabulary), logits)  # never written
    return answers


def mask_of(allowed: tuple[int, ...], vocabulary: int) -> np.ndarray:
    bits = np.zeros((vocabulary + 31) // 32 * 32, bool)
    bits[list(allowed)] = True
    return np.packbits(bits, bitorder="little").view(np.uint32)


def adjusted(logits: np.ndarray, row: Row) -> np.ndarray:
    logits = logits.copy()
    for token, value in row.bias:
        logits[token] += np.float32(value)
    for token, times in row.history:
        value, factor = logits[token], np.float32(row.repetition)
        logits[token] = value / factor if value > 0 else value * factor
        if times:
            logits[token] -= np.float32(row.presence) + np.float32(row.frequency) * np.float32(times)
    if row.allowed:
        logits[np.setdiff1d(np.arange(len(logits)), row.allowed)] = -np.inf
    return logits


def candidates(logits: np.ndarray, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(ids, cumulative shares) of what may be drawn, most likely first."""
    values = (adjusted(logits, row) / np.float32(row.temperature)).astype(np.float32)
    ids = np.argsort(-values, kind="stable")
    ids = ids[values[ids] > -np.inf]
    if row.top_k:
        ids = ids[: row.top_k]
    mass = np.exp(values[ids].astype(np.float64) - values[ids[0]])
    limit = np.float32(row.top_p) * np.float32(mass.sum())
    kept = (np.cumsum(mass) - mass < limit) & (mass >= np.float32(row.min_p))
    ids, mass = ids[kept], mass[kept]
    return ids, np.cumsum(mass) / mass.sum()


def logits_of(seed: int, vocabulary: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng([seed, vocabulary]).standard_normal((1, vocabulary)) * spread).astype(np.float32)


@pytest.mark.parametrize("vocabulary", [1, 7, 16, 1000, 49152])
def test_greedy_takes_the_lowest_id_of_the_largest(isa, teams, vocabulary) -> None:
    logits = np.concatenate([logits_of(seed, vocabulary) for seed in range(5)])
    logits[1, [vocabulary // 3, vocabulary // 2, vocabulary - 1]] = 50.0
    logits[2] = -np.inf
    logits[2, vocabulary - 1] = -1e30
    logits[3] = 0.0
    answers = sample(teams(2), logits, [Row()] * 5)
    np.testing.assert_array_equal(answers.tokens, logits.argmax(1))


@given(
    vocabulary=st.integers(1, 400), seed=st.integers(0, 2**63 - 1), choice=st.integers(0, 9),
    position=st.integers(0, 2**31 - 1), temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 3, 40, 1000]), top_p=st.sampled_from([1.0, 1.0, 0.1, 0.5, 0.95]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9, 1.0]), spread=st.sampled_from([0.0, 0.01, 3.0, 40.0]),
    repetition=st.sampled_from([1.0, 1.3]), presence=st.sampled_from([0.0, 1.5]),
    frequency=st.sampled_from([0.0, -0.5, 0.7]), penalised=st.integers(0, 5),
    allowed=st.sampled_from([0, 0, 1, 7, 390]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_draw_is_the_inverse_of_the_distribution_at_the_keyed_number(
    teams, vocabulary, seed, choice, position, temperature, top_k, top_p, min_p, spread, repetition, presence,
    frequency, penalised, allowed,
) -> None:  # fmt: skip
    logits = logits_of(seed % 1000, vocabulary, spread)
    tokens = np.random.default_rng(seed % 77).permutation(vocabulary)[:penalised]
    row = Row(
        temperature, top_k, top_p, min_p, seed, choice, position, repetition=repetition, presence=presence,
        frequency=frequency, history=tuple((int(t), i % 3) for i, t in enumerate(tokens)),
        bias=tuple((int(t), 2.0 * i) for i, t in enumerate(tokens[:2])),
        allowed=tuple(np.random.default_rng(seed % 91).permutation(vocabulary)[:allowed].tolist()),
    )  # fmt: skip
    answers = sample(teams(1), logits, [row])
    token = int(answers.tokens[0])
    u = uniform(seed, choice, position)

    def fits(row: Row) -> bool:
        ids, shares = candidates(logits[0], row)
        law = np.zeros(vocabulary)
        law[ids] = np.diff(shares, prepend=0.0)
        if token not in ids or np.abs(law - answers.laws[0]).max() > 1e-5:
            return False
        place = int(np.flatnonzero(ids == token)[0])
        return bool((shares[place - 1] if place else 0.0) - 1e-5 <= u <= shares[place] + 1e-5)

    # The edges of top_p and min_p may round either way by one token.
    edges = [(0, 0), (1e-6, 0), (-1e-6, 0), (0, 1e-6), (0, -1e-6)]
    assert any(fits(dataclasses.replace(row, top_p=top_p * (1 + p), min_p=min_p * (1 + m))) for p, m in edges)


@pytest.mark.parametrize("vocabulary", [5, 33, 64, 49152])
def test_a_mask_leaves_the_best_of_what_it_allows(isa, teams, vocabulary) -> None:
    logits = np.concatenate([logits_of(seed, vocabulary) for seed in range(3)])
    allowed = [(vocabulary - 1,), (0, 3, vocabulary // 2), tuple(range(1, vocabulary))]
    rows = [Row(allowed=one, logprobs=1) for one in allowed]
    answers = sample(teams(2), logits, rows)
    wanted = [max(one, key=lambda token: row[token]) for one, row in zip(allowed, logits, strict=True)]
    assert answers.tokens.tolist() == wanted
    np.testing.assert_array_equal(answers.top_ids[:, 0], logits.argmax(1))  # of the raw logits


def test_draws_follow_the_distribution(teams) -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32))[None].repeat(4000, 0)
    rows = [Row(temperature=1.0, seed=11, position=i) for i in range(4000)]
    counts = np.bincount(sample(teams(2), logits, rows).tokens, minlength=5) / 4000
    # 4 standard deviations of a share of 1/2 in 4000 draws
    np.testing.assert_allclose(counts, np.exp(logits[0]), rtol=0, atol=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize("vocabulary", [5, 100, 49152])
@pytest.mark.parametrize("seed", range(3))
def test_log_probabilities_ranks_and_the_most_likely(isa, teams, vocabulary, seed) -> None:
    logits = np.round(logits_of(seed, vocabulary), 2)  # many ties
    wanted = min(20, vocabulary)
    target = seed * 31 % vocabulary
    bias = ((target, 90.0),)
    answers = sample(teams(1), logits, [Row(target=target, logprobs=wanted)])
    chosen = sample(teams(1), logits, [Row(logprobs=0, bias=bias)])
    assert chosen.tokens[0] == target == answers.tokens[0]
    # Of the raw logits: a bias changes the choice, never the report.
    assert chosen.logprob[0] == answers.logprob[0] and chosen.rank[0] == answers.rank[0]
    wide = logits[0].astype(np.float64)
    logprobs = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    assert abs(answers.logprob[0] - logprobs[target]) < 2e-6 * max(1, -logprobs[target])
    assert answers.rank[0] == (logits[0] > logits[0][target]).sum()
    order = np.argsort(-logits[0], kind="stable")[:wanted]
    np.testing.assert_array_equal(answers.top_ids[0, :wanted], order)
    np.testing.assert_allclose(answers.top_logprobs[0, :wanted], logprobs[order], rtol=1e-6, atol=2e-6)


def test_rows_do_not_depend_on_the_rows_beside_them(isa, teams) -> None:
    kinds = [Row(), Row(1.0, 5), Row(0.8, 0, 0.9), Row(1.3, 0, 1.0, 0.02), Row(target=3, logprobs=4)]
    rows = [dataclasses.replace(kinds[i % 5], seed=i, position=7 * i) for i in range(40)]
    logits = np.concatenate([logits_of(i, 3000) for i in range(40)])
    together = sample(teams(3), logits, rows)
    for i, row in enumerate(rows):
        alone = sample(teams(1), logits[i : i + 1], [row])
        assert alone.tokens[0] == together.tokens[i] and alone.logprob[0] == together.logprob[i]

"""The one rule (I1, I9): its law by enumeration on tiny vocabularies, trees against their paths, greedy and typical."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.decode.verify import Keys, acceptance, residual, verify
from ridgeline.kit.errors import InvariantError
from ridgeline.ops.sample import mix, uniform
from ridgeline.state.plan import RowResult
from ridgeline.state.request import Sampling
from ridgeline.state.sequence import Tree


def laws(size: int) -> st.SearchStrategy[np.ndarray]:
    weights = st.lists(st.integers(0, 9), min_size=size, max_size=size).filter(any)
    return weights.map(lambda numbers: np.array(numbers, np.float64) / sum(numbers))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), size=st.integers(4, 8), children=st.integers(1, 3))
def test_the_law_of_the_next_token_is_the_targets(data: st.DataObject, size: int, children: int) -> None:
    """Every way the children could have been drawn from q, weighted; what is left falls to the residual: exactly p."""
    p, q = data.draw(laws(size)), data.draw(laws(size)).astype(np.float32)
    total = np.zeros(size)
    for drawn in itertools.product(range(size), repeat=children):
        weight, left, law = float(np.prod([float(q[token]) for token in drawn])), 1.0, p
        for token in drawn:
            chance = acceptance(law, token, q)
            total[token] += weight * left * chance
            left *= 1 - chance
            law = residual(law, token, q)
        total += weight * left * law
    np.testing.assert_allclose(total, p, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), size=st.integers(4, 8))
def test_named_guesses_leave_the_law_alone(data: st.DataObject, size: int) -> None:
    """n-grams are named, not drawn (q None): the law stays p whatever is named, in whatever order."""
    p = data.draw(laws(size))
    named = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))
    total, left, law = np.zeros(size), 1.0, p
    for token in named:
        chance = acceptance(law, token, None)
        total[token] += left * chance
        left *= 1 - chance
        law = residual(law, token, None)
    np.testing.assert_allclose(total + left * law, p, atol=1e-9)


def answer(law: np.ndarray, seed: int, position: int) -> RowResult:
    """As the sampler draws: most likely first, keyed by seed and position."""
    order = np.argsort(-law, kind="stable")
    place = int(np.searchsorted(np.cumsum(law[order]), uniform(seed, 0, position), side="right"))
    return RowResult(int(order[min(place, len(law) - 1)]), law=law.astype(np.float32))


@pytest.mark.parametrize("rule", ["same", "exact"])
def test_outputs_follow_the_target_over_many_seeds(rule: str) -> None:
    """chi-squared over 20,000 keyed draws of two tokens, a chain drawn from q; 5 tokens: 24 degrees of freedom."""
    random = np.random.default_rng(5)
    first, q = random.dirichlet(np.ones(5)), random.dirichlet(np.ones(5)).astype(np.float32)
    second = random.dirichlet(np.ones(5), 5)  # the target's law after each first token
    counts = np.zeros((5, 5))
    runs = 20_000
    for seed in range(runs):
        guess = int(np.searchsorted(np.cumsum(q), uniform(mix(seed ^ 99), 0, 7), side="right"))
        guess = min(guess, 4)
        answers = [answer(first, seed, 7), answer(second[guess], seed, 8)]
        keys = Keys(Sampling(temperature=1.0, seed=seed), 0, 7)
        verdict = verify(Tree.chain((guess,), (q,)), answers, rule, keys)
        if verdict.places:
            counts[guess, verdict.token] += 1
        else:
            counts[verdict.token, answer(second[verdict.token], seed, 8).token] += 1
    expected = runs * first[:, None] * second
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 51.2  # the 0.1 % point of chi-squared with 24 degrees of freedom


def test_a_tree_is_judged_as_its_paths_are() -> None:
    """Rule same: the longest path that plain decoding would have taken; of siblings only the right one is entered."""
    #      5 ─ 6 ─ 7
    #      8 ─ 9
    tree = Tree((5, 6, 7, 8, 9), (-1, 0, 1, -1, 3), (None,) * 5)
    keys = Keys(Sampling(), 0, 10)

    def judged(*tokens: int) -> tuple[tuple[int, ...], int]:
        verdict = verify(tree, [RowResult(token) for token in tokens], "same", keys)
        return verdict.places, verdict.token

    assert judged(5, 6, 7, 1, 2, 3) == ((0, 1, 2), 1)
    assert judged(5, 6, 4, 1, 2, 3) == ((0, 1), 4)
    assert judged(8, 0, 0, 0, 9, 3) == ((3, 4), 3)
    assert judged(8, 0, 0, 0, 2, 3) == ((3,), 2)
    assert judged(1, 6, 7, 1, 2, 3) == ((), 1)


def test_typical_takes_the_likely_and_refuses_the_unlikely() -> None:
    law = np.array([0.85, 0.1, 0.04, 0.01])
    keys = Keys(Sampling(temperature=1.0, seed=3), 0, 4)
    for token, is_taken in ((0, True), (1, True), (3, False)):
        answers = [RowResult(2, law=law.astype(np.float32)), RowResult(1, law=law.astype(np.float32))]
        assert bool(verify(Tree.chain((token,)), answers, "typical", keys).places) == is_taken


def test_what_cannot_be_judged_is_an_error() -> None:
    keys = Keys(Sampling(temperature=1.0), 0, 4)
    with pytest.raises(InvariantError, match="2 answers for a tree of 2"):
        verify(Tree.chain((1, 2)), [RowResult(1)] * 2, "same", keys)
    with pytest.raises(InvariantError, match="distribution"):
        verify(Tree.chain((1,)), [RowResult(1)] * 2, "exact", keys)
    with pytest.raises(InvariantError, match="no verification rule"):
        verify(Tree.chain((1,)), [RowResult(1)] * 2, "guess", keys)

"""n-grams against a brute-force search; options and depth."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.decode.depth import Acceptance, Depths, expected_tokens
from ridgeline.decode.propose.ngram import NgramProposer
from ridgeline.decode.speculative import parse
from ridgeline.kit.errors import UserError
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence


def longest_match(known: list[int], longest: int, tokens: int) -> tuple[int, ...]:
    """By search: the latest earlier place that the longest repeated ending was followed at."""
    for length in range(min(longest, len(known) - 1), 0, -1):
        for place in range(len(known) - 1, length - 1, -1):
            if known[place - length : place] == known[-length:]:
                return tuple(known[place : place + tokens])
    return ()


@settings(max_examples=300, deadline=None)
@given(
    known=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    more=st.lists(st.integers(0, 3), max_size=10),
    longest=st.integers(1, 5),
    tokens=st.integers(1, 6),
)
def test_the_latest_longest_match_is_guessed(known: list[int], more: list[int], longest: int, tokens: int) -> None:
    proposer = NgramProposer(longest)
    sequence = Sequence(0, Request("r", tuple(known), 8), 0.0, list(known))
    for token in [None, *more]:  # the index grows with the sequence
        if token is not None:
            sequence.tokens.append(token)
        assert proposer.guess(sequence, tokens).tokens == longest_match(sequence.tokens, longest, tokens)


def test_branches_differ_in_their_first_token() -> None:
    known = [1, 2, 3, 1, 2, 4, 1, 2, 3, 5, 1, 2]
    tree = NgramProposer(2, width=2).guess(Sequence(0, Request("r", tuple(known), 8), 0.0, known), 2)
    assert tree.tokens == (3, 5, 4, 1)
    assert tree.parents == (-1, 0, -1, 2)
    assert not tree.is_chain


class Linear:
    """One token costs 1, each further one 0.1; the other program costs a tenth."""

    def seconds(self, program: str, entries: list[tuple[int, int]], rows: int) -> float:
        tokens = sum(count for _, count in entries)
        return (1.0 if program == "model" else 0.1) * (0.9 + 0.1 * tokens)


def test_depth_follows_the_law() -> None:
    assert expected_tokens(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)
    assert expected_tokens(1.0, 4) == 5
    depths = Depths(Linear(), "draft")
    assert depths.best(0.05, 8, 1, 100) == (0, 1.0)  # off: it does not pay
    best, gain = depths.best(0.8, 8, 1, 100)
    gains = [expected_tokens(0.8, k) / depths.cycle(k, 1, 100) for k in range(1, 9)]
    assert gain == pytest.approx(max(gains)) and best == 1 + gains.index(max(gains))


def test_acceptance_learns_and_forgets() -> None:
    acceptance = Acceptance()
    for _ in range(60):
        acceptance.learn(0, 4)
    assert acceptance.rate < 0.15
    for _ in range(200):
        acceptance.skip()
    assert acceptance.rate > 0.4  # tried again after a while


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lookahead", "unknown proposer 'lookahead'"),
        ("ngram:k=0", "from 1 to 16"),
        ("ngram:q=1", "ngram has no option q"),
        ("ngram:k=1,k=2", "twice"),
        ("draft", "needs its name"),
        ("draft:tiny,rule=best", "rule is 'best'"),
        ("ngram:adapt=maybe", "on or off"),
    ],
)
def test_wrong_options_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(text)


def test_options_are_read() -> None:
    proposer, options = parse("draft:/models/a=b:c.gguf,k=6,rule=exact,adapt=off")
    assert proposer.model == "/models/a=b:c.gguf"
    assert (options.k, options.rule, options.adapt) == (6, "exact", False)

"""Choice: what is held back and what is said, whatever the text, its bytes and how events cut it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.serve.choice import Choice, text_logprobs
from ridgeline.state.event import Scored, TokenEvent
from tests.text.small import small_tokenizer

TOKENIZER = small_tokenizer()
ENDS = {2}
PIECES = ["a", "b", "ab", "é", "水", "🦀", "hello", " hello"]


def said(
    ids: list[int], stops: list[str], cuts: list[int], finish: str = "length"
) -> tuple[str, list[str], str | None]:
    """(all text, text by event, finish) of a choice that gets these ids in events of these sizes."""
    choice, parts = Choice(TOKENIZER, stops), []
    left = list(ids)
    for size in [*cuts, len(ids) + 1]:
        now, left = left[:size], left[size:]
        delta = choice.take(TokenEvent("r", tuple(now), 1.0, finish=None if left else finish))
        parts.append(delta.text)
        if delta.finish is not None:
            return "".join(parts), parts, delta.finish
    raise AssertionError("a choice without an end")


def expected(text: str, stops: list[str]) -> str:
    """Up to the first stop string that completes."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(ends)[1]] if ends else text


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=12),
    st.lists(st.text("abhelo é水🦀", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), max_size=30),
)
def test_any_cut_says_the_same_and_no_stop_leaks(pieces: list[str], stops: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    ids = TOKENIZER.encode(text)
    whole, _, finish = said(ids, stops, cuts)
    assert whole == expected(text, stops)
    assert (finish == "stop") == (whole != text or any(stop in text for stop in stops))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(3, TOKENIZER.size - 1), max_size=20), st.lists(st.integers(1, 4), max_size=20))
def test_broken_bytes_are_whole_characters_in_every_part(ids: list[int], cuts: list[int]) -> None:
    whole, parts, _ = said(ids, [], cuts)
    assert whole == TOKENIZER.decode(ids)
    assert all(part.encode("utf-8").decode("utf-8") == part for part in parts)  # no lone surrogate, ever


def test_a_stop_string_over_many_tokens_ends_between_them() -> None:
    ids = TOKENIZER.encode("say STOP now")
    choice = Choice(TOKENIZER, ["STOP"])
    deltas = [choice.take(TokenEvent("r", (token,), 1.0)) for token in ids[: ids.index(TOKENIZER.encode("P")[0]) + 1]]
    assert "".join(delta.text for delta in deltas) == "say " and deltas[-1].finish == "stop"
    assert choice.tokens == len(deltas)


def test_tokens_after_a_stop_string_in_one_event_do_not_count() -> None:
    ids = TOKENIZER.encode("a!bc")
    delta = Choice(TOKENIZER, ["!"]).take(TokenEvent("r", tuple(ids), 1.0))
    assert (delta.text, delta.tokens, delta.finish) == ("a", tuple(ids[:2]), "stop")


def test_the_stop_id_is_no_text() -> None:
    delta = Choice(TOKENIZER, []).take(TokenEvent("r", (*TOKENIZER.encode("hi"), 2), 1.0, finish="stop"))
    assert (delta.text, len(delta.tokens), delta.finish) == ("hi", 4 - 1, "stop")


def test_halves_of_characters_have_names_of_their_own() -> None:
    high, low = TOKENIZER.encode("é")
    scored = Scored(high, -1.0, 0, ((high, -1.0), (low, float("-inf"))))
    lists = text_logprobs(TOKENIZER, [scored], [7])
    assert lists.top_logprobs == [{"bytes:\\xc3": -1.0, "bytes:\\xa9": -9999.0}]
    assert (lists.tokens, lists.token_logprobs, lists.text_offset) == (["bytes:\\xc3"], [-1.0], [7])

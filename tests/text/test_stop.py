"""Stop strings: the first to complete, however the text is cut; nothing of a stop string is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.kit.errors import UserError
from ridgeline.text.stop import StopStrings

LETTERS = st.text("abc", max_size=40)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


@given(LETTERS, STOPS, st.data())
@settings(max_examples=200)
def test_equals_searching_the_whole_text(text, stops, data):
    ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    stream = StopStrings(stops)
    shown, place = "", 0
    while place < len(text):
        step = data.draw(st.integers(1, 6))
        shown += stream.push(text[place : place + step])
        assert expected.startswith(shown)
        place += step
    assert shown + stream.flush() == expected
    assert stream.matched == (min(ends)[2] if ends else None)


@given(LETTERS, STOPS)
def test_holds_back_no_more_than_it_must(text, stops):
    """What is held is the beginning of a stop string."""
    stream = StopStrings(stops)
    shown = "".join(stream.push(character) for character in text)
    held = stream.flush()
    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
    assert stream.matched is not None or shown + held == text


def test_after_a_match_everything_is_dropped():
    stream = StopStrings(["END"])
    assert stream.push("one EN") == "one " and stream.push("D two") == ""
    assert stream.matched == "END" and stream.push("three") == "" and stream.flush() == ""


@pytest.mark.parametrize("stops", [[""], ["x" * 1025], [str(i) for i in range(65)]])
def test_limits(stops):
    with pytest.raises(UserError):
        StopStrings(stops)

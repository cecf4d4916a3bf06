"""Retentions: parts that compose, refuse what does not go together, and say in closed form what they keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.kit.errors import UserError
from ridgeline.memory.retention.retention import RETENTIONS, make_retention
from ridgeline.memory.spans import kept_blocks, most_blocks
from ridgeline.ops.kv import PACK, Reach


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("all", Reach()),
        ("window:512", Reach(512)),
        ("sinks:4+window:512", Reach(512, 4)),
        ("window:512+sinks:4", Reach(512, 4)),
        ("h2o:64+window:64", Reach(64, 0, 64)),
        ("sinks:4+h2o:60+window:64", Reach(64, 4, 60)),
    ],
)
def test_parts_compose(text: str, reach: Reach) -> None:
    made = make_retention(text)
    assert made.whole == reach == made.reach(0) and made.name == text
    assert made.prefix_stable == reach.is_everything
    assert ("attention mass" in made.needs) == bool(reach.heavy)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sinks:4", "sinks needs recent tokens"),
        ("h2o:64", "h2o needs recent tokens"),
        ("window", "window:256"),
        ("window:0", "from 1"),
        ("window:-3", "from 1"),
        ("window:١", "from 1"),
        ("all:3", "write all as all"),
        ("all+window:3", "keeps everything"),
        ("window:3+window:4", "twice"),
        ("magic", "unknown retention"),
        ("", "unknown retention"),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_retention(text)


def test_the_narrower_window_counts() -> None:
    """A layer that the model gives a window keeps it; one with a wider window than the retention's is cut."""
    made = make_retention("sinks:4+window:256")
    assert made.reach(128) == Reach(128)
    assert made.reach(512) == made.reach(0) == Reach(256, 4)
    assert make_retention("all").reach(512) == Reach(512)


@given(
    st.sampled_from(["all", "window:40", "sinks:4+window:40", "sinks:20+window:33", "h2o:30+window:40"]),
    st.integers(0, 2000),
)
def test_what_is_kept_is_what_is_left_after_one_token_at_a_time(text: str, tokens: int) -> None:
    """By hand: a list of kept positions, cut after every token (h2o: packed at multiples of PACK)."""
    made = make_retention(text)
    reach, kept = made.whole, 0
    for computed in range(1, tokens + 1):
        kept += 1
        if reach.window and kept > reach.budget and (not reach.heavy or computed % PACK == 0):
            kept = reach.budget
    assert made.kept(tokens) == kept == int(made.kept(np.array([tokens]))[0])
    assert kept_blocks(reach, tokens) <= most_blocks(reach, tokens, 16)


def test_every_name_is_written_and_read() -> None:
    for name in RETENTIONS:
        assert RETENTIONS.get(name).name == name

"""Perplexity and divergence by hand, on logits that are given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ridgeline.kit.errors import UserError
from ridgeline.perf.quality import WINDOW, measure_quality, named_text, windows_of


class Given:
    """Logits [vocabulary], the same at every position; two pieces a window, as the real one gives several."""

    def __init__(self, logits):
        self.row = np.asarray(logits, np.float32)
        self.vocabulary = len(logits)

    def logits(self, window):
        targets = np.asarray(window[1:], np.int64)
        for piece in (targets[:1], targets[1:]):
            yield piece, np.tile(self.row, (len(piece), 1))


def quality(model, parent, windows):
    return measure_quality(model, parent, windows, lambda token: 1, "given")


def test_perplexity_of_a_fair_coin_is_two():
    result = quality(Given([3.0, 3.0]), None, [(0, 1, 1), (1, 0, 1)])
    assert (result.tokens, result.windows) == (4, 2)
    assert result.perplexity == pytest.approx(2) and result.bits_per_byte == pytest.approx(1)
    assert result.kl is None and result.parent_perplexity is None


def test_divergence_is_from_the_parent_to_the_model():
    parent, model = Given(np.log([0.75, 0.25])), Given(np.log([0.5, 0.5]))
    result = quality(model, parent, [(0, 0, 1)])
    assert result.kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
    assert result.parent_perplexity == pytest.approx(math.exp(-(math.log(0.75) + math.log(0.25)) / 2), rel=1e-5)
    assert quality(parent, parent, [(0, 0, 1)]).kl == 0


def test_agreement_counts_equal_likeliest_tokens():
    assert quality(Given([1.0, 2.0]), Given([2.0, 1.0]), [(0, 0)]).agreement == 0
    assert quality(Given([2.0, 1.9]), Given([9.0, 1.0]), [(0, 0)]).agreement == 1


def test_vocabularies_must_be_equal():
    with pytest.raises(UserError, match="same vocabulary"):
        quality(Given([1.0, 2.0]), Given([1.0, 2.0, 3.0]), [(0, 0)])


def test_windows_hold_at_least_what_was_asked_and_never_a_broken_one():
    ids = list(range(5 * WINDOW + 100))
    windows = windows_of(ids, 1000)
    assert [len(window) for window in windows] == [WINDOW, WINDOW]
    assert windows[1][0] == WINDOW
    begun = windows_of(ids, 1000, bos=7)
    assert [window[0] for window in begun] == [7, 7] and begun[1][1] == WINDOW - 1
    with pytest.raises(UserError, match=f"--tokens {5 * (WINDOW - 1)}"):
        windows_of(ids, 10_000)


def test_the_text_that_is_always_there():
    assert len(named_text("pydoc")) > 300_000

"""How integer linears read activations: 8 bits, 15 in groups with outliers (D10), or one of them everywhere.

Owns the thresholds; kernels/cpp/quantise.h owns the rule. A group's error follows its peak, so a group of 32 keeps 15
bits when its peak exceeds `outlier` times the mean magnitude of its row.
"""

from __future__ import annotations

import math

from ridgeline.kit.errors import UserError

ACTIVATIONS = ("auto", "int8", "int16")
DEFAULT = "int16"  # the one that keeps logits within 2 % of the largest; auto is the faster choice
# By the kind of operator that writes the row, or "head" when that reads it. Rows behind a norm have a few columns of
# outliers, the same for every token; products with a gate have heavy tails everywhere, and keeping more of them costs
# more than it gives; of attention's output little depends on a bit; the head's error is the logits' own, its rows are
# few. Measured: docs/findings/cpu-linear.md.
OUTLIER = 8.0
OUTLIER_OF = {"activation": 12.0, "experts": 12.0, "attend": 12.0, "head": 4.0}
LEAST, MOST = 1.0, 1e6


def outlier_of(activations: str, kind: str) -> float:
    """Threshold for rows that an operator of this kind writes (or a head reads). 0: 15 bits everywhere, inf: nowhere.

    UserError for a name there is not; auto:outlier=NUMBER sets one threshold for all."""
    name, _, option = activations.partition(":")
    if name not in ACTIVATIONS or (option and name != "auto"):
        raise UserError(f"activations is {activations!r}; known: {', '.join(ACTIVATIONS)}, auto:outlier=NUMBER.")
    if name != "auto":
        return math.inf if name == "int8" else 0.0
    return _threshold(activations, option) if option else OUTLIER_OF.get(kind, OUTLIER)


def _threshold(activations: str, option: str) -> float:
    key, _, text = option.partition("=")
    try:
        value = float(text) if key == "outlier" else math.nan
    except ValueError:
        value = math.nan
    if not LEAST <= value <= MOST:
        raise UserError(f"activations is {activations!r}; write auto:outlier=8, a number from {LEAST:g} to {MOST:g}.")
    return value

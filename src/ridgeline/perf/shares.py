"""Shares: who caused what part of a step, in whole nanoseconds that sum to the step exactly: `share: v1` (A12).

Operators over tokens go by tokens (experts too: every token is sent to as many), head and sampling by rows of logits,
attention by its own counted max(compute, memory) time, host and gaps equally over the entries. Idle is nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ridgeline.ops.batch import BatchShape, count_pairs
from ridgeline.ops.op import TOKENS
from ridgeline.ops.program import Program
from ridgeline.run.count import alike, weight_bytes
from ridgeline.run.estimate import compute_kind
from ridgeline.run.machine import Machine

from .roofline import roof_seconds

RULE = "share: v1"
BY_TOKENS, BY_ROWS, BY_ATTENTION = "tokens", "rows", "attention"
FINE = 1 << 20  # counted seconds become so many whole parts of a step's largest

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


def largest_remainder(total: Integers, step: Integers, weight: Integers) -> Integers:
    """total [steps] split over entries [n] of the same step (step: sorted, [n]) by whole weights >= 0.

    The parts of a step sum to its total exactly; a step whose weights are all 0 is split equally. What is left after
    rounding down goes, one each, to the largest remainders, the earlier entry first.
    """
    if not len(step):
        return np.zeros(0, np.int64)
    sums = np.bincount(step, weight, len(total)).astype(np.int64)
    weight = np.where(sums[step] > 0, weight, 1)
    sums = np.bincount(step, weight, len(total)).astype(np.int64)
    product = total[step] * weight
    parts, rest = np.divmod(product, sums[step])
    left = total - np.bincount(step, parts, len(total)).astype(np.int64)
    order = np.lexsort((-rest, step))  # stable: the earlier entry first among equals
    begins = np.searchsorted(step, np.arange(len(total)))
    rank = np.empty(len(step), np.int64)
    rank[order] = np.arange(len(step)) - begins[step[order]]
    return np.asarray(parts + (rank < left[step]), np.int64)


def bases(program: Program | None) -> dict[str, str]:
    """By what the lines of each operator group are shared."""
    found: dict[str, str] = {}
    for line in program or ():
        basis = BY_TOKENS if line.output.rows == TOKENS else BY_ROWS
        found[line.part] = BY_ATTENTION if line.op.kind == "attend" else basis
    return found


def attention_weights(program: Program, machine: Machine, start: Integers, tokens: Integers) -> Mapping[str, Doubles]:
    """Counted seconds [entries] of every attention group, entry by entry: at this machine's ceilings."""
    pairs, kept = count_pairs(start, tokens)
    reached = {reach: count_pairs(start, tokens, reach) for reach in program.reaches}
    shape = BatchShape(tokens, np.zeros_like(tokens), np.ones_like(tokens), pairs, kept, reached)
    set_bytes = weight_bytes(program)
    seconds: dict[str, Doubles] = {}
    for line, indices in alike(program):
        if line.op.kind == "attend":
            one = roof_seconds(line.cost(shape), compute_kind(line), machine, set_bytes)
            whole = len(indices) * np.broadcast_to(np.asarray(one, float), tokens.shape)
            seconds[line.part] = seconds.get(line.part, np.zeros(len(tokens))) + whole
    return seconds


def whole_weights(seconds: Doubles, step: Integers, steps: int) -> Integers:
    """Counted seconds as whole numbers, relative to the largest of the step."""
    largest = np.zeros(steps)
    np.maximum.at(largest, step, seconds)
    return np.rint(seconds / np.maximum(largest[step], 1e-300) * FINE).astype(np.int64)

"""The one rule by which guessed tokens are judged: walk down the tree, stop at the first place where no child is taken.

`same`, `exact` and `typical` differ only in when a child is taken (I1, I9); greedy is `same` at temperature 0.
Knows nothing of where guesses come from.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError
from ridgeline.ops.sample import mix, uniform
from ridgeline.state.plan import RowResult
from ridgeline.state.request import Sampling
from ridgeline.state.sequence import Tree

Law = npt.NDArray[np.float64]

RULES = ("same", "exact", "typical")
ACCEPT, RESIDUAL = 0xA11CE, 0x2E51D  # keep the draws of a position apart from those of the sampler and each other
TYPICAL_MOST, TYPICAL_SHARE = 0.09, 0.3  # epsilon and delta of Medusa (2401.10774)


@dataclass(frozen=True, slots=True)
class Verdict:
    """places: of the accepted tokens in the tree, root first. token: what follows the last of them."""

    places: tuple[int, ...]
    token: int


@dataclass(frozen=True, slots=True)
class Keys:
    """What the random numbers of a sequence hang on: position of the first guessed token, seed and choice."""

    sampling: Sampling
    choice: int
    position: int


def verify(tree: Tree, answers: Many[RowResult], rule: str, keys: Keys) -> Verdict:
    """answers[0]: the target's own choice after the last known token; answers[1 + i]: after tree token i.

    same: a child is taken when it is the token the target draws itself, so ids are those of plain decoding, drawn or
    greedy. exact: a child drawn from q is taken with probability min(1, p/q), else the residual max(0, p - q) is what
    the next child or the final draw meets: the output law is p (Leviathan et al. 2211.17192; several children in turn:
    SpecInfer 2305.09781). typical: a child is taken when p(x) >= min(epsilon, delta e^-H(p)); the law changes (I9).
    """
    if rule not in RULES:
        raise InvariantError(f"no verification rule {rule!r}")
    if len(answers) != len(tree) + 1:
        raise InvariantError(f"{len(answers)} answers for a tree of {len(tree)} tokens")
    take = {"same": _same, "exact": _exact, "typical": _typical}[rule]
    places: list[int] = []
    while True:
        place = places[-1] if places else -1
        children = tree.children(place)
        child, token = take(tree, children, answers[place + 1], keys, keys.position + len(places))
        if child is None:
            return Verdict(tuple(places), token)
        places.append(child)


def acceptance(p: Law, token: int, q: npt.NDArray[np.float32] | None) -> float:
    """Probability with which the exact rule takes `token` when the target's law is p and it was drawn from q."""
    if q is None:
        return float(p[token])
    return min(1.0, float(p[token]) / float(q[token])) if q[token] > 0 else 0.0


def residual(p: Law, token: int, q: npt.NDArray[np.float32] | None) -> Law:
    """The law that is left when `token` was refused: max(0, p - q), scaled to 1. q None: all mass on `token`."""
    left = p.copy()
    if q is None:
        left[token] = 0.0
    else:
        left = np.maximum(left - q.astype(np.float64), 0.0)
    mass = left.sum()
    return left / mass if mass > 0 else p  # p == q: nothing is ever refused, so rounding alone brought us here


def _same(tree: Tree, children: Many[int], answer: RowResult, keys: Keys, position: int) -> tuple[int | None, int]:
    return next((child for child in children if tree.tokens[child] == answer.token), None), answer.token


def _exact(tree: Tree, children: Many[int], answer: RowResult, keys: Keys, position: int) -> tuple[int | None, int]:
    if keys.sampling.is_greedy:
        return _same(tree, children, answer, keys, position)
    if not children:
        return None, answer.token
    law = _law(answer)
    for number, child in enumerate(children):
        token, q = tree.tokens[child], tree.laws[child]
        chance = uniform(mix(keys.sampling.seed ^ ACCEPT) ^ number, keys.choice, position)
        if chance < acceptance(law, token, q):
            return child, token
        law = residual(law, token, q)
    place = uniform(mix(keys.sampling.seed ^ RESIDUAL), keys.choice, position)
    drawn = int(np.searchsorted(np.cumsum(law), place * law.sum(), side="right"))
    return None, min(drawn, int(np.flatnonzero(law)[-1]))


def _typical(tree: Tree, children: Many[int], answer: RowResult, keys: Keys, position: int) -> tuple[int | None, int]:
    if keys.sampling.is_greedy:
        return _same(tree, children, answer, keys, position)
    if not children:
        return None, answer.token
    law = _law(answer)
    entropy = -float((law[law > 0] * np.log(law[law > 0])).sum())
    least = min(TYPICAL_MOST, TYPICAL_SHARE * float(np.exp(-entropy)))
    best = max(children, key=lambda child: law[tree.tokens[child]])
    return (best, tree.tokens[best]) if law[tree.tokens[best]] >= least else (None, answer.token)


def _law(answer: RowResult) -> Law:
    if answer.law is None:
        raise InvariantError("this rule needs the distribution of every answer, and it was not asked for")
    return answer.law.astype(np.float64)

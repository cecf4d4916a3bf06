"""Rescheduler: which running sequence should go on in which other engine (E5; recipe core §D.2). Pure: sees numbers,
moves nothing; the cluster and the simulation ask the same object.

A load is the seconds one step of an engine would take, traced over the tokens to come: whoever will have ended by then
no longer counts. Whoever moves must win more time than its bytes need, and fit where it goes at the worst moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Trace = tuple[Floats, Floats]  # seconds added to a step, tokens kept, at every point in time
UNKNOWN = float("inf")  # tokens still to come of one nobody can say anything about


class StepLine(msgspec.Struct, frozen=True):
    """Seconds of a step that continues `sequences` with `tokens` kept tokens in all: a straight line."""

    fixed_s: float
    sequence_s: float
    token_s: float

    def seconds(self, sequences: float, tokens: float) -> float:
        return self.fixed_s + self.sequence_s * sequences + self.token_s * tokens


class MoveCost(msgspec.Struct, frozen=True):
    """What a move takes: bytes over the link, and what it costs whatever the size."""

    bytes_per_token: float
    bytes_per_s: float
    fixed_s: float = 0.0

    def seconds(self, tokens: int) -> float:
        return tokens * self.bytes_per_token / self.bytes_per_s + self.fixed_s


class Rules(msgspec.Struct, frozen=True):
    """every: steps between two looks. horizon: tokens looked ahead. tolerance: an engine this far over (under) the mean
    gives (takes). least_remaining: whoever ends sooner stays. least_gain: share of the imbalance that a move must take
    away. rest: tokens a sequence makes where it is before it moves again. most_moves: at one look."""

    every: int = 16
    horizon: int = 512
    points: int = 16
    tolerance: float = 0.1
    least_remaining: float = 24
    least_gain: float = 0.05
    rest: int = 48
    most_moves: int = 2


class Resident(msgspec.Struct, frozen=True):
    """A running sequence. tokens: it has; remaining: output tokens still to come; stays: it may not move (now).
    fresh: output tokens since it came here."""

    name: str
    tokens: int
    remaining: float = UNKNOWN
    fresh: int = 1 << 30
    stays: bool = False


class Site(msgspec.Struct, frozen=True):
    """An engine that goes on with sequences. capacity: tokens it can keep."""

    residents: tuple[Resident, ...]
    capacity: int


class Move(msgspec.Struct, frozen=True):
    """gain: of the imbalance that is gone then, in s². payback_s: what the sequence wins over its life."""

    name: str
    source: str
    target: str
    gain: float
    payback_s: float
    cost_s: float


class Rescheduler:
    """looks, moves: how often it was asked, and what it has said."""

    def __init__(self, step: StepLine, cost: MoveCost, rules: Rules = Rules()) -> None:
        self.step, self.cost, self.rules = step, cost, rules
        self._times = np.linspace(0, rules.horizon, rules.points)
        self._weights = np.exp(-2 * self._times / rules.horizon)  # the near future is known better
        self._weights /= self._weights.sum()
        self._seen = self.looks = self.moves = 0

    def is_due(self, sequences: int) -> bool:
        """To be asked at every token that one of `sequences` running ones got: True about every `every` steps."""
        self._seen += 1
        if self._seen < self.rules.every * max(1, sequences):
            return False
        self._seen = 0
        return True

    def decide(self, sites: Mapping[str, Site]) -> list[Move]:
        """The moves that pay, best first; each is judged with those before it already made."""
        self.looks += 1
        traces = {name: {one.name: self._trace(one) for one in site.residents} for name, site in sites.items()}
        places = {name: {one.name: one for one in site.residents} for name, site in sites.items()}
        moves: list[Move] = []
        while len(moves) < self.rules.most_moves:
            move = self._best(sites, places, traces)
            if move is None:
                break
            moves.append(move)
            one = places[move.source].pop(move.name)
            places[move.target][move.name] = msgspec.structs.replace(one, stays=True)
            traces[move.target][move.name] = traces[move.source].pop(move.name)
        self.moves += len(moves)
        return moves

    # -- inside

    def _trace(self, one: Resident) -> Trace:
        """(seconds it adds to a step, tokens it keeps) at every point in time; 0 when it has ended."""
        is_there = self._times < one.remaining
        tokens = np.where(is_there, one.tokens + self._times, 0.0)
        return is_there * self.step.sequence_s + self.step.token_s * tokens, tokens

    def _sum(self, traces: Mapping[str, Trace]) -> Trace:
        zero = np.zeros(len(self._times))
        return sum((t[0] for t in traces.values()), zero), sum((t[1] for t in traces.values()), zero)

    def _imbalance(self, loads: Many[Floats]) -> float:
        """Σ w_t · variance over the engines."""
        return float(self._weights @ np.var(np.stack(loads), axis=0))

    def _best(
        self, sites: Mapping[str, Site], places: Mapping[str, dict[str, Resident]],
        traces: Mapping[str, dict[str, Trace]],
    ) -> Move | None:  # fmt: skip
        if len(sites) < 2:
            return None
        sums = {name: self._sum(one) for name, one in traces.items()}
        levels = {name: float(self._weights @ load) for name, (load, _) in sums.items()}
        mean = sum(levels.values()) / len(levels)
        over = [name for name, level in levels.items() if level > (1 + self.rules.tolerance) * mean]
        under = [name for name, level in levels.items() if level < (1 - self.rules.tolerance) * mean]
        before = self._imbalance([load for load, _ in sums.values()])
        best: Move | None = None
        for source in over:
            for one in places[source].values():
                if not self._may_go(one):
                    continue
                for target in under:
                    if float((sums[target][1] + traces[source][one.name][1]).max()) > sites[target].capacity:
                        continue
                    move = self._judge(one, source, target, sums, traces[source][one.name][0])
                    least = max(self.rules.least_gain * before, 0.0 if best is None else best.gain)
                    if move is not None and move.gain > least:
                        best = move
        return best

    def _may_go(self, one: Resident) -> bool:
        return not one.stays and one.remaining >= self.rules.least_remaining and one.fresh >= self.rules.rest

    def _judge(
        self, one: Resident, source: str, target: str, sums: Mapping[str, Trace], load: Floats
    ) -> Move | None:  # fmt: skip
        """load: what it adds. None: it wins less time than its move takes."""
        cost_s = self.cost.seconds(one.tokens)
        faster = np.where(self._times < one.remaining, sums[source][0] - sums[target][0] - load, 0.0)
        payback_s = float(np.mean(faster)) * self.rules.horizon  # a step makes one token of it
        if payback_s <= cost_s:
            return None
        loads = {name: own for name, (own, _) in sums.items()}
        before = self._imbalance(list(loads.values()))
        loads[source], loads[target] = loads[source] - load, loads[target] + load
        return Move(one.name, source, target, before - self._imbalance(list(loads.values())), payback_s, cost_s)


def remaining_of(kind: str, output: int, most: int, length: float, *, is_exact: bool = False) -> float:
    """Tokens still to come of a sequence with `output` of them. kind: load, predict or oracle. most: it may have;
    length: predicted in the end, 0: not (yet); is_exact: it will have `most`."""
    if kind == "oracle" and is_exact:
        return float(most - output)
    if kind == "predict" and length:
        return float(min(max(length - output, 1.0), most - output))
    return UNKNOWN

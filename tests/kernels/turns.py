"""The binding rule of co-run (E1, E2) in Python: an emulator to check the native queue against, and the published rule.

A step has tiles (items of many rows, bound by arithmetic) and pages (of few rows, bound by reading), each a number of
turns. Every thread has one of each under way and draws whose turn is next. Whatever the order of arrival: every item
once, all its turns on one thread and in order, kinds mixed in the step's ratio until one is used up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

TILE, PAGE = 0, 1
Rule = Callable[[int, int, int], int]  # (turn, tile turns, page turns of the step) -> kind


def even(turn: int, tiles: int, pages: int) -> int:
    """Ours: turn t goes to a tile where floor(t * share) grows. Exact for every ratio; not for a step of no turns."""
    return TILE if (turn + 1) * tiles // (tiles + pages) > turn * tiles // (tiles + pages) else PAGE


def published(turn: int, tiles: int, pages: int) -> int:
    """POD's (core.md B.2): whole periods; up to half of the larger kind is left over. Not for a kind of 0."""
    if tiles <= pages:
        return TILE if turn % (pages // tiles + 1) == 0 else PAGE
    return TILE if turn % (tiles // pages + 1) < tiles // pages else PAGE


@dataclass
class Thread:
    """Items under way: [number, turns left]; how many turns it drew."""

    under_way: list[list[int] | None] = field(default_factory=lambda: [None, None])
    turn: int = 0


@dataclass
class Queue:
    """`items`: turns of every tile, of every page item, in the order in which they are drawn."""

    items: tuple[Sequence[int], Sequence[int]]
    rule: Rule = even
    drawn: list[int] = field(default_factory=lambda: [0, 0])

    def serve(self, thread: Thread) -> tuple[int, int] | None:
        """(kind, item) of the thread's next turn; None: nothing is left for it."""
        for kind in (TILE, PAGE):
            if thread.under_way[kind] is None and self.drawn[kind] < len(self.items[kind]):
                thread.under_way[kind] = [self.drawn[kind], self.items[kind][self.drawn[kind]]]
                self.drawn[kind] += 1
        kind = self.wants(thread.turn)
        found = thread.under_way[kind]
        if found is None:
            kind = 1 - kind
            found = thread.under_way[kind]
        if found is None:
            return None
        thread.turn += 1
        found[1] -= 1
        if found[1] == 0:
            thread.under_way[kind] = None
        return kind, found[0]

    def wants(self, turn: int) -> int:
        """The kind that the ratio asks for."""
        tiles, pages = (sum(items) for items in self.items)
        return self.rule(turn, tiles, pages) if tiles and pages else (PAGE if pages else TILE)


def emulate(queue: Queue, threads: int, arrivals: Iterable[int]) -> list[list[tuple[int, int]]]:
    """Turns of every thread; `arrivals`: who draws next. Whoever is not named any more finishes in the end."""
    team = [Thread() for _ in range(threads)]
    turns: list[list[tuple[int, int]]] = [[] for _ in team]
    for number in arrivals:
        served = queue.serve(team[number])
        if served is not None:
            turns[number].append(served)
    for number, thread in enumerate(team):
        while (served := queue.serve(thread)) is not None:
            turns[number].append(served)
    return turns


def check(queue: Queue, turns: list[list[tuple[int, int]]]) -> None:
    """The invariants; AssertionError names the one that fails."""
    for kind in (TILE, PAGE):
        counted: dict[int, int] = {}
        owners: dict[int, set[int]] = {}
        for number, own in enumerate(turns):
            of_kind = [item for k, item in own if k == kind]
            assert of_kind == sorted(of_kind), "an item was left before it was over"
            for item in of_kind:
                counted[item] = counted.get(item, 0) + 1
                owners.setdefault(item, set()).add(number)
        assert counted == dict(enumerate(queue.items[kind])), "an item's turns were not taken exactly once"
        assert all(len(who) == 1 for who in owners.values()), "an item went to two threads"
    tiles, pages = (sum(items) for items in queue.items)
    if not tiles or not pages:
        return
    for own in turns:
        last = [max((at for at, (k, _) in enumerate(own) if k == kind), default=-1) for kind in (TILE, PAGE)]
        seen = 0
        for at in range(min(last) + 1):  # until one kind is used up for this thread
            seen += own[at][0] == TILE
            assert own[at][0] == queue.wants(at), "a turn that the ratio did not ask for"
            if queue.rule is even:
                assert abs(seen - (at + 1) * tiles / (tiles + pages)) < 1, "a mix away from the ratio"

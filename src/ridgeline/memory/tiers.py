"""Tiers: which evicted blocks stay saved outside the pool, in host memory and then on disk, oldest out first (C7, B10).

Owns keys and byte budgets, never bytes; says what to move as transfers. Refuses what does not pay: loading a block
back must be estimated cheaper than computing it again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ridgeline.state.ports import BreakEven
from ridgeline.state.transfer import LoadBlock, MoveSaved, SaveBlock, Transfer

from .pool import NONE

if TYPE_CHECKING:
    from .prefix_tree import Node

TIERS = ("host", "disk")  # in the order in which blocks fall through them


class Tiers:
    """budgets: bytes by tier. node_bytes: of one node in all groups. saved, loaded: nodes, since the start."""

    def __init__(self, budgets: Mapping[str, int], node_bytes: int, break_even: BreakEven, program: str) -> None:
        self.room = {tier: budgets.get(tier, 0) // node_bytes for tier in TIERS}
        self.node_bytes, self.break_even, self.program = node_bytes, break_even, program
        self.saved = self.loaded = 0
        self.moves: list[Transfer] = []
        self._nodes: dict[str, OrderedDict[int, Node]] = {tier: OrderedDict() for tier in TIERS}
        self._next = 0

    def save(self, node: Node, blocks: tuple[int, ...], lost: Callable[[Node], None]) -> None:
        """A node leaves the pool: keep its bytes where there is room and it pays. lost: told of nodes that fall out of
        the last tier; never this one."""
        if node.saved >= 0:
            self._touch(node)
            return
        is_needed = any(child.saved >= 0 for child in node.children.values())  # they are of no use without it
        tier = next(
            (t for t in TIERS if self.room[t] and (is_needed or self.break_even.pays(node.depth, t))), None
        )  # fmt: skip
        if tier is None:
            return
        node.saved, self._next = self._next, self._next + 1
        self._nodes[tier][node.saved] = node
        self.saved += 1
        self.moves += [
            SaveBlock(group, block, node.saved, tier, self.program) for group, block in _there(blocks)
        ]  # fmt: skip
        self._settle(lost)

    def load(self, node: Node, blocks: tuple[int, ...]) -> None:
        """Saved bytes into new blocks; they stay saved."""
        self._touch(node)
        self.loaded += 1
        self.moves += [LoadBlock(group, node.saved, block, self.program) for group, block in _there(blocks)]

    def forget(self, node: Node) -> None:
        """Nobody will ask for a saved node any more."""
        for nodes in self._nodes.values():
            if nodes.pop(node.saved, None) is not None:
                self.moves.append(MoveSaved(node.saved, "", self.program))
        node.saved = -1

    def count(self, tier: str) -> int:
        """Nodes saved in a tier."""
        return len(self._nodes[tier])

    def _touch(self, node: Node) -> None:
        for nodes in self._nodes.values():
            if node.saved in nodes:
                nodes.move_to_end(node.saved)

    def _settle(self, lost: Callable[[Node], None]) -> None:
        """What a tier has no room for falls into the next, oldest first; out of the last it is lost."""
        for tier, following in zip(TIERS, (*TIERS[1:], ""), strict=True):
            nodes = self._nodes[tier]
            while len(nodes) > self.room[tier]:
                key, node = nodes.popitem(last=False)
                if following and self.room[following]:
                    self._nodes[following][key] = node
                    self.moves.append(MoveSaved(key, following, self.program))
                else:
                    self.moves.append(MoveSaved(key, "", self.program))
                    node.saved = -1
                    lost(node)


def _there(blocks: tuple[int, ...]) -> list[tuple[int, int]]:
    """(group, block) of the groups that hold one."""
    return [(group, block) for group, block in enumerate(blocks) if block != NONE]

"""PrefixTree: which computed blocks begin which texts (C5, C6). A node is 16 tokens after those of its parent; where
tokens are kept in codes together (`grain` of them), its key says all of them: their pages differ with any one of them.

Owns nodes, their order of last use, and the promises of running sequences to compute some soon; blocks stay the
pools'. One root a tenant (salt). A tail node has fewer than 16 tokens and is only ever copied from (C4).
"""
# size: small methods over one tree; splitting them would share its counts between two owners

from __future__ import annotations

import heapq
import itertools
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ridgeline.kit.errors import InvariantError

from .pool import BlockPool, with_blocks
from .storage.storage import BLOCK_TOKENS
from .tiers import Tiers

Tokens = tuple[int, ...]
REMEMBERED = 8192  # places for evicted nodes of which a miss can still say so; a power of two


class Node:
    """blocks: one a group (-1: it holds none here), None: not computed yet, or no longer in the pool. saved: key of its
    bytes in a tier, or -1.
    promised: running sequences that will compute it. residents: children that have blocks. used: when somebody last
    needed it. mark: names the whole prefix. depth: its tokens."""

    __slots__ = (
        "blocks", "children", "depth", "mark", "order", "parent", "promised", "residents", "saved", "tokens", "used"
    )  # fmt: skip

    def __init__(self, parent: Node | None, tokens: Tokens, mark: int) -> None:
        self.parent, self.tokens, self.mark = parent, tokens, mark
        self.blocks: tuple[int, ...] | None = None
        self.children: dict[Tokens, Node] = {}
        self.order: list[Tokens] = []  # keys of children, sorted
        self.promised = self.residents = self.used = 0
        self.saved = -1
        self.depth: int = min(len(tokens), BLOCK_TOKENS) + (parent.depth if parent is not None else 0)

    @property
    def is_ready(self) -> bool:
        return self.blocks is not None or self.saved >= 0

    def nearest(self, tokens: Tokens, *, ready: bool) -> tuple[Node | None, int]:
        """The child that shares most of its first tokens with `tokens`, and how many.

        Sorted neighbours share most, so only they are looked at, and those behind them while they are not ready."""
        best, most = None, 0
        place = bisect_left(self.order, tokens)
        for keys in (range(place, len(self.order)), range(place - 1, -1, -1)):
            for index in keys:
                child = self.children[self.order[index]]
                if not (child.is_ready or (child.promised and not ready)):
                    continue
                if (shared := common(child.tokens, tokens)) > most:
                    best, most = child, shared
                break
        return best, most


@dataclass(frozen=True, slots=True)
class Match:
    """path: whole nodes, ready. tail: one that begins with the next tail_tokens tokens. promised: tokens that will
    match once running sequences have computed what they have promised, never less than `tokens`."""

    path: tuple[Node, ...]
    tail: Node | None
    tail_tokens: int
    promised: int

    @property
    def tokens(self) -> int:
        return len(self.path) * BLOCK_TOKENS + self.tail_tokens

    def whole(self, grain: int) -> Match:
        """As far as beginnings go that are multiples of `grain` tokens."""
        if grain == BLOCK_TOKENS:
            return self
        nodes = len(self.path) * BLOCK_TOKENS // grain * (grain // BLOCK_TOKENS)
        return Match(self.path[:nodes], None, 0, self.promised // grain * grain)


class PrefixTree:
    """All pools (one a group) hold the blocks of a node together. evicted: nodes that left the pools."""

    def __init__(self, pools: tuple[BlockPool, ...], tiers: Tiers | None = None, grain: int = BLOCK_TOKENS) -> None:
        self.pools, self.tiers, self.grain = pools, tiers, grain
        self.evicted = 0
        self._roots: dict[str, Node] = {}
        self._salts: dict[Node, str] = {}
        self._clock = itertools.count(1)
        self._oldest: list[tuple[int, Node]] = []  # heap by last use; entries that no longer hold are skipped
        self._gone = array("q", bytes(8 * REMEMBERED))  # marks, each at its own place: as large at first as after weeks

    def root(self, salt: str) -> Node:
        node = self._roots.get(salt)
        if node is None:
            node = self._roots[salt] = Node(None, (), hash(salt))
            self._salts[node] = salt
        return node

    def key(self, tokens: Sequence[int], at: int) -> Tokens:
        """Of the node whose tokens begin at `at`: all up to the end of its grain."""
        return tuple(tokens[at : (at // self.grain + 1) * self.grain])

    def match(self, salt: str, tokens: Tokens, limit: int) -> Match:
        """The longest beginning of tokens[:limit] that is here."""
        node = self._roots.get(salt)
        if node is None:
            return Match((), None, 0, 0)
        path: list[Node] = []
        at = 0
        while at + BLOCK_TOKENS <= limit:
            child = node.children.get(self.key(tokens, at))
            if child is None or not child.is_ready:
                break
            path.append(child)
            node, at = child, at + BLOCK_TOKENS
        tail, count = node.nearest(tokens[at : min(at + BLOCK_TOKENS, limit)], ready=True)
        promised = at
        while promised + BLOCK_TOKENS <= limit:
            child = node.children.get(self.key(tokens, promised))
            if child is None or not (child.is_ready or child.promised):
                break
            node, promised = child, promised + BLOCK_TOKENS
        promised += node.nearest(tokens[promised : min(promised + BLOCK_TOKENS, limit)], ready=False)[1]
        return Match(tuple(path), tail, count, max(promised, at + count))

    def why(self, salt: str, tokens: Tokens, limit: int, match: Match) -> str:
        """Why the match ends before `limit`, in a few words; "" when it does not (C5: a miss says why)."""
        if match.tokens >= limit > 0:
            return ""
        if limit < BLOCK_TOKENS and not match.tokens:
            return "too short"
        if match.promised > match.tokens:
            return "still being computed"
        at = len(match.path) * BLOCK_TOKENS
        key = self.key(tokens, at)
        node = match.path[-1] if match.path else self._roots.get(salt)
        mark = hash((node.mark if node else hash(salt), key))
        if self._gone[mark % REMEMBERED] == mark:
            return "evicted"
        if not match.path and any(key in root.children for name, root in self._roots.items() if name != salt):
            return "salt differs"
        return "diverged" if match.tokens and node is not None and node.children else "first seen"

    # -- what running sequences do

    def promise(self, parent: Node, tokens: Tokens) -> Node:
        """Somebody who runs will compute these tokens after the parent's."""
        node = parent.children.get(tokens) or self._link(parent, tokens)
        node.promised += 1
        return node

    def withdraw(self, node: Node) -> None:
        """A promise is kept or broken."""
        node.promised -= 1
        self._drop_if_empty(node)

    def publish(self, parent: Node, tokens: Tokens, blocks: tuple[int, ...]) -> Node:
        """These tokens are computed and lie in `blocks`; the node's own blocks when somebody was first."""
        node = parent.children.get(tokens) or self._link(parent, tokens)
        if node.blocks is None:
            node.blocks = blocks
            parent.residents += 1
        return node

    def extend(self, node: Node, tokens: Tokens) -> Node:
        """A tail has grown to `tokens`; what is already here under them stays, and the tail ends."""
        if node.parent is None or node.blocks is None:
            raise InvariantError("only a computed tail can grow")
        longer = self.publish(node.parent, tokens, node.blocks)  # first, so that the parent keeps a child
        if longer is not node:
            self.discard(node)
        return longer

    def discard(self, node: Node) -> None:
        """The node has no blocks any more; its promises and what is saved of it stay."""
        if node.parent is None or node.blocks is None:
            raise InvariantError("a node without blocks was discarded")
        node.blocks = None
        node.parent.residents -= 1
        self._drop_if_empty(node)

    def unused(self, node: Node) -> None:
        """Nobody holds the node's blocks any more, or somebody copied from it: from now on it grows older."""
        node.used = next(self._clock)
        if self._is_evictable(node):
            heapq.heappush(self._oldest, (node.used, node))
            if len(self._oldest) > 2 * self.pools[0].blocks + 64:
                self._oldest = [(n.used, n) for used, n in self._oldest if used == n.used and self._is_evictable(n)]
                heapq.heapify(self._oldest)

    # -- room

    def make_room(self, count: int) -> bool:
        """Evict unused leaves, oldest first, until every pool has `count` free blocks."""
        if any(pool.free_blocks + pool.cached_blocks < count for pool in self.pools):
            return False
        while any(pool.free_blocks < count for pool in self.pools):
            if not self._oldest:
                raise InvariantError("cached blocks that no leaf of the prefix tree leads to")
            used, node = heapq.heappop(self._oldest)
            if used == node.used and self._is_evictable(node):
                self._evict(node)
        return True

    def _evict(self, node: Node) -> None:
        blocks, parent = node.blocks, node.parent
        if blocks is None or parent is None:
            raise InvariantError("a node without blocks cannot be evicted")
        self.evicted += 1
        if self.tiers is not None:
            self.tiers.save(node, blocks, self._lose)
        if node.saved < 0:
            self._remember(node)
        for pool, block in with_blocks(self.pools, blocks):
            pool.forget(block)
        self.discard(node)
        if self._is_evictable(parent):
            heapq.heappush(self._oldest, (parent.used, parent))

    def _lose(self, node: Node) -> None:
        """The last tier had no room for a node any more; what follows it is of no use without it."""
        if node.blocks is not None:
            return
        for child in list(node.children.values()):
            if child.saved >= 0 and self.tiers is not None:
                self.tiers.forget(child)
                self._lose(child)
        self._remember(node)
        if node.parent is not None and node.parent.children.get(node.tokens) is node:  # its last child took it along
            self._drop_if_empty(node)

    def restore(self, node: Node, blocks: tuple[int, ...]) -> None:
        """A saved node gets blocks again."""
        if node.parent is None or node.blocks is not None or self.tiers is None:
            raise InvariantError("only what is saved can be restored")
        self.tiers.load(node, blocks)
        node.blocks = blocks
        node.parent.residents += 1

    def _remember(self, node: Node) -> None:
        self._gone[node.mark % REMEMBERED] = node.mark

    def _is_evictable(self, node: Node) -> bool:
        return node.blocks is not None and not node.residents and not self.pools[0].references(node.blocks[0])

    # -- shape

    def _link(self, parent: Node, tokens: Tokens) -> Node:
        node = Node(parent, tokens, hash((parent.mark, tokens)))
        parent.children[tokens] = node
        insort(parent.order, tokens)
        return node

    def _drop_if_empty(self, node: Node) -> None:
        """Unlink a node that has nothing to offer, and then its parent if that has nothing left either."""
        while node.parent is not None and not (node.is_ready or node.promised or node.children):
            parent = node.parent
            del parent.children[node.tokens]
            del parent.order[bisect_left(parent.order, node.tokens)]
            node = parent
        if node.parent is None and not node.children and (salt := self._salts.pop(node, None)) is not None:
            del self._roots[salt]

    def nodes(self) -> Iterator[Node]:
        """All but the roots, parents first."""
        waiting = list(self._roots.values())
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children.values())
            if node.parent is not None:
                yield node

    def check(self) -> None:
        """Raise InvariantError unless every cached block is a node's, and the counts agree."""
        blocks = []
        for node in self.nodes():
            if node.blocks is not None:
                blocks.append(node.blocks[0])
            if node.residents != sum(child.blocks is not None for child in node.children.values()):
                raise InvariantError("a node has lost count of its children")
            if node.order != sorted(node.children):
                raise InvariantError("the children of a node are not in order")
        cached = sum(not self.pools[0].references(block) for block in blocks)
        if len(set(blocks)) != len(blocks) or cached != self.pools[0].cached_blocks:
            raise InvariantError(f"{self.pools[0].cached_blocks} blocks are cached; the prefix tree knows {cached}")


def common(one: Tokens, other: Tokens) -> int:
    """Length of the common beginning."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))

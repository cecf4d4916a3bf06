"""Sharing: how sequences use the prefix tree: take a beginning, promise the rest, publish what is computed, leave it.

Owns what a sequence holds (Held). Blocks are referenced once by every table they are in; a node of the tree refers to
blocks without holding them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ridgeline.ops.kv import Reach
from ridgeline.state.plan import Ints
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import CopyBlock, Transfer

from .pool import NONE, BlockPool, with_blocks
from .prefix_tree import Match, Node, PrefixTree, Tokens
from .spans import blocks_for, grain_of
from .storage.storage import BLOCK_TOKENS
from .table import Table
from .tiers import Tiers


@dataclass(slots=True)
class Held:
    """path: nodes of the tree whose blocks stand first in the tables. promises: nodes after them it will compute.
    tail: a node that names its first block after the path. kept: tokens that every table has been cut to.
    room: tokens that certainly fit into the blocks held. due: computed tokens before which there is nothing to do."""

    tables: tuple[Table, ...]
    salt: str = ""
    path: list[Node] = field(default_factory=list)
    promises: list[Node] = field(default_factory=list)
    tail: Node | None = None
    kept: int = 0
    room: int = 0
    due: int = 0
    views: tuple[Ints, ...] | None = None  # of the tables; None: one has changed since they were looked at

    def look(self) -> tuple[Ints, ...]:
        """The tables as entries see them: the same object as long as none has changed."""
        if self.views is None:
            self.views = tuple([table.view() for table in self.tables])
        return self.views

    @property
    def shared_tokens(self) -> int:
        return len(self.path) * BLOCK_TOKENS

    def blocks_at(self, index: int) -> tuple[int, ...]:
        return tuple(table[index] for table in self.tables)


class Sharing:
    """copied: blocks that were copied because sequences part inside them. reaches: one a pool. grain: tokens of which
    what is shared is a multiple; where that is more than a block's, no block is copied either."""

    def __init__(
        self, pools: tuple[BlockPool, ...], program: str, tiers: Tiers | None = None, reaches: tuple[Reach, ...] = ()
    ) -> None:
        self.pools, self.program = pools, program
        self.reaches = reaches or (Reach(),) * len(pools)
        self.grain = grain_of(self.reaches)
        self.tree = PrefixTree(pools, tiers, self.grain)
        self.tiers = self.tree.tiers
        self.copied = 0
        self.moves: list[Transfer] = tiers.moves if tiers is not None else []  # one list: their order is kept

    # -- the beginning

    def take(self, held: Held, match: Match) -> int:
        """Put what was found into the tables, as far as there is room for it; how many tokens that is."""
        held.views = None
        for node in match.path:
            if node.blocks is None:
                if (
                    own := self._new_blocks(len(held.path))
                ) is None or not node.is_ready:  # making room may have taken it
                    self._give_back(own)
                    return held.shared_tokens
                self.tree.restore(node, own)
            else:
                for pool, block in with_blocks(self.pools, node.blocks):
                    pool.share(block)
            for table, block in zip(held.tables, node.blocks or (), strict=True):
                table.append([block])
            held.path.append(node)
        return held.shared_tokens + (self._copy_tail(held, match.tail, match.tail_tokens) if match.tail else 0)

    def _copy_tail(self, held: Held, tail: Node, tokens: int) -> int:
        """A block of its own that begins as the tail does (C4); how many tokens that is."""
        source = tail.blocks
        for pool, block in zip(self.pools, source or (), strict=source is not None):
            pool.share(block)  # so that making room does not take it
        own = self._new_blocks(0)
        for pool, block in zip(self.pools, source or (), strict=source is not None):
            pool.park(block)
        if source is not None:
            self.tree.unused(tail)
        if own is None or not tail.is_ready:
            self._give_back(own)
            return 0
        if source is not None:
            self.moves += [
                CopyBlock(group, *pair, self.program) for group, pair in enumerate(zip(source, own, strict=True))
            ]  # fmt: skip
            self.copied += 1
        elif self.tiers is not None:
            self.tiers.load(tail, own)
        for table, block in zip(held.tables, own, strict=True):
            table.append([block])
        return tokens

    def _new_blocks(self, index: int) -> tuple[int, ...] | None:
        """Block number `index` of every group that keeps it for good, made room for; None when there is none."""
        if not self.tree.make_room(1):
            return None
        return tuple(
            NONE if reach.is_recent and index >= blocks_for(reach.sinks) else (pool.allocate(1) or [NONE])[0]
            for reach, pool in zip(self.reaches, self.pools, strict=True)
        )

    def _give_back(self, blocks: tuple[int, ...] | None) -> None:
        for pool, block in with_blocks(self.pools, blocks) if blocks else ():
            pool.free([block])

    def promise(self, held: Held, tokens: Tokens) -> None:
        """Others may wait for what this sequence is going to compute."""
        node = self._last(held)
        until = len(tokens) if self.grain == BLOCK_TOKENS else len(tokens) // self.grain * self.grain
        for begin in range(held.shared_tokens, until, BLOCK_TOKENS):
            node = self.tree.promise(node, self.tree.key(tokens, begin))
            held.promises.append(node)

    # -- progress

    def publish(self, held: Held, known: list[int], computed: int) -> None:
        """Whole blocks of the first `computed` tokens are there for everybody."""
        while held.shared_tokens + BLOCK_TOKENS <= computed // self.grain * self.grain:
            index, begin = len(held.path), held.shared_tokens
            tokens, own = self.tree.key(known, begin), held.blocks_at(index)
            if held.tail is not None:
                node, held.tail = self.tree.extend(held.tail, tokens), None
            else:
                node = self.tree.publish(self._last(held), tokens, own)
            for pool, table, mine, block in zip(self.pools, held.tables, own, node.blocks or (), strict=True):
                if mine != block and NONE not in (
                    mine,
                    block,
                ):  # somebody was first with the same tokens: their block is as good as ours
                    held.views = None
                    pool.share(block)
                    table.replace(index, block)
                    pool.free([mine])
            held.path.append(node)
            if held.promises:
                self.tree.withdraw(held.promises.pop(0))
        self._publish_tail(held, computed)
        is_tail_next = len(held.promises) == 1
        held.due = held.shared_tokens + (len(held.promises[0].tokens) if is_tail_next else self.grain)

    def _publish_tail(self, held: Held, computed: int) -> None:
        """What was promised of a block that is not full is there once it is computed."""
        if len(held.promises) != 1 or len(held.promises[0].tokens) == BLOCK_TOKENS:
            return
        promise = held.promises[0]
        if computed < held.shared_tokens + len(promise.tokens):
            return
        if promise.blocks is None:
            held.tail = self.tree.publish(self._last(held), promise.tokens, held.blocks_at(len(held.path)))
        self.tree.withdraw(held.promises.pop())

    # -- the end

    def leave(self, held: Held, computed: Tokens) -> int:
        """Blocks that others may still want stay cached; how many from the first. The others are the caller's."""
        for node in reversed(held.promises):
            self.tree.withdraw(node)
        kept = list(held.path)
        tail = computed[held.shared_tokens :]
        if self.grain == BLOCK_TOKENS and (tail or held.tail is not None):
            kept += self._leave_tail(held, tail)
        for node in reversed(kept):  # leaves first: they are evicted first
            for pool, block in with_blocks(self.pools, node.blocks or ()):
                pool.park(block)
            self.tree.unused(node)
        return len(kept)

    def _leave_tail(self, held: Held, tail: Tokens) -> list[Node]:
        """The node of the last, partly filled block, unless another begins with its tokens already."""
        own = held.blocks_at(len(held.path))
        if held.tail is not None and len(tail) <= len(held.tail.tokens):
            return [held.tail]
        if held.tail is not None:
            node = self.tree.extend(held.tail, tail)
        elif self._last(held).nearest(tail, ready=True)[1] == len(tail):
            return []
        else:
            node = self.tree.publish(self._last(held), tail, own)
        return [node] if node.blocks == own else []

    def _last(self, held: Held) -> Node:
        return held.path[-1] if held.path else self.tree.root(held.salt)


def shareable(sequence: Sequence) -> int:
    """How many of the known tokens need not be computed if they are kept: all but one, none that is to be scored."""
    if sequence.request.prompt_logprobs is not None and len(sequence.scored) < sequence.tokens_prompt - 1:
        return len(sequence.scored)
    return sequence.tokens_known - 1

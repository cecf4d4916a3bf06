"""PrefixTree: the longest common beginning, exactly; oldest unused leaves go first; a miss says why (C5, C6)."""

from __future__ import annotations

import random

from ridgeline.memory.pool import BlockPool
from ridgeline.memory.prefix_tree import PrefixTree, common
from ridgeline.memory.storage.storage import BLOCK_TOKENS


def keep(tree: PrefixTree, salt: str, tokens: tuple[int, ...]) -> int:
    """What a finished sequence leaves behind; how many blocks it had to add."""
    (pool,) = tree.pools
    parent, added = tree.root(salt), 0
    for begin in range(0, len(tokens), BLOCK_TOKENS):
        part = tokens[begin : begin + BLOCK_TOKENS]
        node = parent.children.get(part)
        if node is None or node.blocks is None:
            if len(part) < BLOCK_TOKENS and parent.nearest(part, ready=True)[1] == len(part):
                break
            assert tree.make_room(1)
            (block,) = pool.allocate(1) or [-1]
            node = tree.publish(parent, part, (block,))
            pool.park(block)
            tree.unused(node)
            added += 1
        parent = node
    return added


def test_the_match_is_the_longest_common_beginning() -> None:
    """10^4 random texts against a list of all texts kept (C6)."""
    draw = random.Random(1)
    cases = 0
    while cases < 10_000:
        tree = PrefixTree((BlockPool(4096),))
        kept: list[tuple[str, tuple[int, ...]]] = []
        letters = draw.choice((2, 3, 50))
        for _ in range(40):
            salt = draw.choice(("", "", "b"))
            if kept and draw.random() < 0.7:
                _, other = draw.choice(kept)
                cut = draw.randrange(0, len(other) + 1)
                text = other[:cut] + tuple(draw.randrange(letters) for _ in range(draw.randrange(0, 40)))
            else:
                text = tuple(draw.randrange(letters) for _ in range(draw.randrange(0, 90)))
            limit = draw.randrange(0, len(text) + 1)
            match = tree.match(salt, text, limit)
            assert match.tokens == max((common(other, text[:limit]) for s, other in kept if s == salt), default=0)
            assert match.promised == match.tokens
            cases += 1
            keep(tree, salt, text)
            kept.append((salt, text))
        tree.check()
        tree.pools[0].check()


def test_unused_leaves_are_evicted_oldest_first() -> None:
    tree = PrefixTree((BlockPool(6),))
    first, second = tuple(range(32)), tuple(range(100, 132))
    keep(tree, "", first)
    keep(tree, "", second)
    keep(tree, "", first[:16] + (7,) * 16)
    assert (tree.pools[0].free_blocks, tree.pools[0].cached_blocks) == (1, 5)
    assert tree.make_room(2) and tree.match("", first, 32).tokens == 16  # the oldest leaf, not its parent
    assert tree.make_room(3) and tree.match("", second, 32).tokens == 16
    tree.check()
    assert tree.make_room(6) and not list(tree.nodes())
    assert tree.pools[0].free_blocks == 6 and tree.evicted == 5
    assert not tree.make_room(7)


def test_blocks_in_use_are_never_evicted() -> None:
    tree = PrefixTree((BlockPool(3),))
    text = tuple(range(48))
    keep(tree, "", text)
    match = tree.match("", text, 20)
    assert len(match.path) == 1 and match.tail_tokens == 4
    tree.pools[0].share(match.path[0].blocks[0])
    assert tree.make_room(2) and not tree.make_room(3)
    assert tree.match("", text, 48).tokens == 16


def test_a_miss_says_why() -> None:
    tree = PrefixTree((BlockPool(4),))
    text = tuple(range(64))

    def why(salt: str, tokens: tuple[int, ...]) -> str:
        limit = len(tokens) - 1
        return tree.why(salt, tokens, limit, tree.match(salt, tokens, limit))

    assert why("", text) == "first seen"
    assert why("", text[:9]) == "too short"
    keep(tree, "", text)
    assert why("", text) == ""
    assert why("other", text) == "salt differs"
    assert why("", text[:20] + text[:20]) == "diverged"
    assert why("", text + text) == "first seen"  # behind everything that is kept
    assert tree.make_room(1)
    assert why("", text) == "evicted"
    promised = tree.promise(tree.match("", text, 48).path[-1], text[48:])
    assert why("", text) == "still being computed"
    tree.withdraw(promised)
    assert why("", text) == "evicted"
    tree.check()

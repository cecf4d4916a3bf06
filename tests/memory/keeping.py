"""A machine that keeps what it is told to keep: pages whose slots hold a hash of all tokens so far, the transfers of
plans carried out literally, and a driver that calls SequenceMemory in the order the scheduler does."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ridgeline.memory.block_memory import BlockMemory
from ridgeline.memory.spans import kept_blocks, slot_of
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.state.request import Request
from ridgeline.state.sequence import Sequence
from ridgeline.state.transfer import CopyBlock, LoadBlock, MoveSaved, MoveTokens, PackTokens, SaveBlock

MODULUS = (1 << 61) - 1


def follow(state: int, token: int) -> int:
    return (state * 1_000_003 + token + 7) % MODULUS


class Pages:
    """pages[group][block, slot]: the state after the token kept there; stamps: its position."""

    def __init__(self, memory: BlockMemory) -> None:
        self.memory = memory
        self.pages = [np.full((pool.blocks, BLOCK_TOKENS), -1, np.int64) for pool in memory.pools]
        self.saved: dict[tuple[int, int], tuple[str, np.ndarray]] = {}

    def carry_out(self) -> None:
        for move in self.memory.transfers():
            match move:
                case CopyBlock(group, source, target):
                    self.pages[group][target] = self.pages[group][source]
                case SaveBlock(group, block, key, tier):
                    self.saved[group, key] = (tier, self.pages[group][block].copy())
                case LoadBlock(group, key, block):
                    self.pages[group][block] = self.saved[group, key][1]
                case MoveSaved(key, tier):
                    for group in range(len(self.pages)):
                        if tier:
                            self.saved[group, key] = (tier, self.saved[group, key][1])
                        else:
                            del self.saved[group, key]
                case MoveTokens(group, blocks, sources, targets):
                    flat = [self.pages[group][blocks[s // BLOCK_TOKENS], s % BLOCK_TOKENS] for s in sources]
                    for target, value in zip(targets, flat, strict=True):
                        self.pages[group][blocks[target // BLOCK_TOKENS], target % BLOCK_TOKENS] = value
                case PackTokens(group, blocks, slots, sinks, heavy, recent):  # heavy: the first ones stand for them
                    order = [*range(sinks + heavy), *range(slots - recent, slots)]
                    flat = [self.pages[group][blocks[s // BLOCK_TOKENS], s % BLOCK_TOKENS] for s in order]
                    for target, value in enumerate(flat):
                        self.pages[group][blocks[target // BLOCK_TOKENS], target % BLOCK_TOKENS] = value

    def compute(self, sequence: Sequence, start: int, count: int, written: list[set[int]]) -> None:
        """Keep the states of tokens [start, start + count); every kept token that may be read must be right."""
        tables = self.memory.blocks_of(sequence)
        slots = self.memory.slots_of(sequence, start) or (start,) * len(tables)
        states = [1]
        for token in sequence.tokens[: start + count]:
            states.append(follow(states[-1], token))
        for group, (table, first) in enumerate(zip(tables, slots, strict=True)):
            pages, reach = self.pages[group], self.memory.reaches[group]
            assert first == slot_of(reach, start)
            assert len(table) * BLOCK_TOKENS >= first + count
            if not reach.heavy:
                for position in readable(reach.window, reach.sinks, start):
                    block = int(table[position // BLOCK_TOKENS])
                    assert block >= 0, f"token {position} of a context of {start} was dropped"
                    assert pages[block, position % BLOCK_TOKENS] == states[position + 1], f"token {position} is not it"
            else:
                assert (table[: first // BLOCK_TOKENS] >= 0).all()
            for place in range(count):
                block = int(table[(first + place) // BLOCK_TOKENS])
                assert block >= 0
                pages[block, (first + place) % BLOCK_TOKENS] = states[start + place + 1]
                written[group].add(block)


def readable(window: int, sinks: int, position: int) -> Iterable[int]:
    """Positions before `position` that its token reads."""
    if not window:
        return range(position)
    begin = max(0, position - window + 1)
    return [*range(min(sinks, begin)), *range(begin, position)]


def check_closed_form(memory: BlockMemory, sequence: Sequence, computed: int) -> None:
    """After advance: the table of each group holds what Reach.kept says, in whole blocks."""
    for reach, table in zip(memory.reaches, memory.blocks_of(sequence), strict=True):
        behind = table[: -(-slot_of(reach, computed) // BLOCK_TOKENS)]
        assert int((behind >= 0).sum()) == kept_blocks(reach, computed)


class Driver:
    """Sequences in order of arrival, everybody a chunk a step; the last makes way when blocks are short."""

    def __init__(self, memory: BlockMemory, *, chunk: int = 24) -> None:
        self.memory, self.pages, self.chunk = memory, Pages(memory), chunk
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.ends: dict[int, int] = {}
        self.shared: dict[int, int] = {}
        self.computed = 0
        self.deferred = 0
        self._next = 0

    def add(self, tokens: Iterable[int], output: int, *, scored: bool = False, tenant: str = "") -> Sequence:
        prompt = tuple(tokens)
        fields = {"tenant": tenant} if tenant else {}
        request = Request(str(self._next), prompt, output, prompt_logprobs=0 if scored else None, **fields)
        sequence = Sequence(self._next, request, 0.0, list(prompt))
        self._next += 1
        self.ends[sequence.id] = len(prompt) + output
        self.waiting.append(sequence)
        return sequence

    def step(self) -> None:
        memory = self.memory
        for sequence in list(self.running):
            while sequence in self.running and not memory.reserve(
                sequence, sequence.tokens_computed, self.ask(sequence)
            ):
                victim = self.running.pop()
                memory.release(victim, victim.tokens_computed)
                victim.tokens_computed = 0
                self.waiting.insert(0, victim)
                assert self.running or victim is not sequence, "one sequence alone does not fit"
        while self.waiting:
            sequence = self.waiting[0]
            count = memory.admit(sequence)
            if count is None:
                self.deferred += 1
                assert self.running, "it waits for nobody"
                break
            sequence.tokens_computed = count
            if not memory.reserve(sequence, count, self.ask(sequence)):
                memory.release(sequence, count)
                sequence.tokens_computed = 0
                assert self.running, "an empty pool has no room"
                break
            self.shared[sequence.id] = count
            self.running.append(self.waiting.pop(0))
        self.pages.carry_out()
        written: list[set[int]] = [set() for _ in memory.pools]
        planned = []
        for sequence in self.running:
            count = memory.longest(sequence.tokens_computed, self.ask(sequence))
            own: list[set[int]] = [set() for _ in memory.pools]
            self.pages.compute(sequence, sequence.tokens_computed, count, own)
            for group, blocks in enumerate(own):
                assert not blocks & written[group], "two sequences write one block"
                assert all(memory.pools[group].references(block) == 1 for block in blocks), "a shared block is written"
                written[group] |= blocks
            planned.append((sequence, count))
        for sequence, count in planned:
            sequence.tokens_computed += count
            self.computed += count
            memory.advance(sequence, sequence.tokens_computed)
            check_closed_form(memory, sequence, sequence.tokens_computed)
            if sequence.tokens_computed == sequence.tokens_known:
                sequence.tokens.append((sequence.tokens_known + sequence.id) % 101)
            if sequence.tokens_known >= self.ends[sequence.id]:
                self.finish(sequence)
        memory.check()

    def ask(self, sequence: Sequence) -> int:
        return min(sequence.tokens_to_compute, self.chunk)

    def finish(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
            self.memory.release(sequence, sequence.tokens_computed)
        else:
            self.waiting.remove(sequence)
        self.memory.check()

    def run(self, limit: int = 10_000) -> None:
        for _ in range(limit):
            if not (self.waiting or self.running):
                return
            self.step()
        raise AssertionError("they did not finish")

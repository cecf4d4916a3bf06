"""NativeBatch: the step's arrays in the layout of RlBatch, allocated once; a plan writes what differs from the last.

Refuses plans that do not fit: whatever is wrong with a plan is said here, before anything runs.
"""

from __future__ import annotations

import ctypes
from array import array
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.kernels import native
from ridgeline.kit.errors import InvariantError
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.state.plan import Entry, Ints, LogitRow, Mask, RowResult, StepPlan
from ridgeline.state.request import MAX_LOGPROBS

from .arena import StepLimits

MOST_BRANCHED = 64  # tokens of an entry with parents: a native mask has 64 bits

# Mirrors RlSampling; checked against the ctypes struct below so that the two cannot drift apart.
SAMPLING = np.dtype(
    [
        ("seed", "u8"), ("choice", "i4"), ("position", "i4"), ("target", "i4"), ("logprobs", "i4"),
        ("temperature", "f4"), ("top_p", "f4"), ("min_p", "f4"), ("top_k", "i4"),
        ("repetition", "f4"), ("presence", "f4"), ("frequency", "f4"),
        ("history_begin", "i4"), ("history_end", "i4"), ("bias_begin", "i4"), ("bias_end", "i4"),
        ("law", "i4"), ("mask", "i4"),
    ],
    align=True,
)  # fmt: skip

SAMPLING_WORDS, POSITION_WORD = (bytes_ // 4 for bytes_ in (SAMPLING.itemsize, native.RlSampling.position.offset))


class NativeBatch:
    """fill(plan) before the call, results(plan) after it. Arrays are int32 unless named otherwise.

    The arrays keep what the last plan wrote, and fill writes what differs from it: in a plan that only goes on with the
    same sequences that is their tokens and positions. What stays the same costs the host path nothing.
    """

    def __init__(
        self, limits: StepLimits, line_ns: npt.NDArray[np.int64], groups: int = 1, states: RecurrentPool | None = None,
        vocabulary: int = 0, more: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """groups: KvGroups of the program, each with block tables and slots of its own. vocabulary: of the head. more:
        tokens of each group that are kept elsewhere until their block is whole."""
        if SAMPLING.itemsize != ctypes.sizeof(native.RlSampling):
            raise AssertionError("SAMPLING and RlSampling differ")
        self._limits, self._groups, self._vocabulary, self._states = limits, groups, vocabulary, states
        self._more = more or (0,) * groups
        self._laws = np.zeros((0, vocabulary), np.float32)  # grows when a row asks for its distribution
        self._masks = np.zeros((0, (vocabulary + 31) // 32), np.uint32)  # grows when rows come with masks
        self._table_stride = (limits.context + BLOCK_TOKENS - 1) // BLOCK_TOKENS if groups else 1
        tokens, rows, sequences = limits.tokens, max(limits.logit_rows, 1), limits.sequences
        self._ids, self._positions, self._sequence_of = _ints(tokens), _ints(tokens), _ints(tokens)
        self._first = _ints(sequences + 1)
        # [groups, entries, table_stride] and [groups, tokens] of the step at hand, from the start
        self._table, self._slots = _ints(groups * sequences * self._table_stride), _ints(groups * tokens)
        self._tree = np.zeros(tokens, np.uint64)
        self._logit_token, self._sampled, self._rank = _ints(rows), _ints(rows), _ints(rows)
        self._top_ids = _ints(rows, MAX_LOGPROBS)
        self._logprob = np.zeros(rows, np.float32)
        self._top_logprobs = np.zeros((rows, MAX_LOGPROBS), np.float32)
        self._sampling = np.zeros(rows, SAMPLING)
        self._state_slot = _ints(sequences)
        self.line_experts = _ints(len(line_ns))
        batch = native.RlBatch()
        batch.table_stride = self._table_stride
        for field, values in (
            ("token_ids", self._ids), ("positions", self._positions), ("sequence_of", self._sequence_of),
            ("first_token", self._first), ("block_table", self._table), ("logit_token", self._logit_token),
            ("sampling", self._sampling), ("sampled", self._sampled), ("logprob", self._logprob),
            ("rank", self._rank), ("top_ids", self._top_ids), ("top_logprobs", self._top_logprobs),
            ("line_ns", line_ns), ("line_experts", self.line_experts),
        ):  # fmt: skip
            setattr(batch, field, values.ctypes.data)
        self.struct = batch
        # What every step writes and reads goes through views: NumPy is slow for a few numbers, and slower still when
        # its code has left the caches, which every native step sees to.
        self._ids_view, self._positions_view = self._ids.data, self._positions.data
        self._sampling_view, self._sampled_view = self._sampling.view(np.int32).data, self._sampled.data
        self._slots_pointer, self._tree_pointer = self._slots.ctypes.data, self._tree.ctypes.data
        if states is not None:
            native.set_states(batch, states)
            batch.state_slot = self._state_slot.ctypes.data
        # What the arrays hold. counts: tokens by entry. blocks, room: an entry's block tables as they were given, and
        # the slots they cover. keys: of a logit row everything but its position; None: never the same again.
        self._sizes: tuple[int, ...] = ()
        self._counts: list[int] = []
        self._logit_tokens: list[int] = []
        self._blocks: list[tuple[Ints, ...] | None] = []
        self._room: list[int] = []
        self._keys: list[tuple[Any, ...] | None] = [None] * rows
        self._pointed: tuple[Any, ...] = ()

    def fill(self, plan: StepPlan) -> None:
        """InvariantError (nothing is half run then) for a plan over the limits, or one that runs past its blocks."""
        entries = plan.entries
        if len(entries) > self._limits.sequences:
            raise self._too_large(plan)
        if len(entries) != len(self._blocks):  # the tables of a group lie one behind another: all of them move
            self._blocks, self._room = [None] * len(entries), [0] * len(entries)
        blocks, room, context = self._blocks, self._room, self._limits.context
        ids: list[int] = []
        positions: list[int] = []
        counts: list[int] = []
        logit_tokens: list[int] = []
        rows: list[LogitRow] = []
        has_slots = has_trees = False
        for index, entry in enumerate(entries):
            tokens, start = entry.tokens, entry.start
            token, end = len(ids), start + len(tokens)
            ids += tokens
            positions += range(start, end)
            counts.append(len(tokens))
            if entry.blocks is not blocks[index]:
                self._fill_tables(index, len(entries), entry)
            if end > room[index] or end > context:
                self._check_room(entry)
            for row in entry.rows:
                rows.append(row)
                logit_tokens.append(token + row.offset)
            if entry.slots:
                has_slots = True
            if entry.parents:
                has_slots = has_trees = True
        if len(ids) > self._limits.tokens or len(rows) > self._limits.logit_rows:
            raise self._too_large(plan)
        self._ids_view[: len(ids)] = array("i", ids)
        self._positions_view[: len(ids)] = array("i", positions)
        if counts != self._counts:
            self._first[1 : len(counts) + 1] = np.cumsum(counts)
            self._sequence_of[: len(ids)] = np.repeat(np.arange(len(counts)), counts)
            self._counts = counts
        if logit_tokens != self._logit_tokens:
            self._logit_token[: len(rows)] = logit_tokens
            self._logit_tokens = logit_tokens
        self._fill_sampling(rows)
        if self._states is not None:
            self._fill_states(entries, self._states.slots)
        if has_slots:
            self._fill_slots(entries, len(ids))
        if has_trees:
            self._fill_trees(entries)
        sizes = (len(ids), len(entries), len(rows), has_slots, has_trees)
        if sizes != self._sizes:
            struct, self._sizes = self.struct, sizes
            struct.tokens, struct.sequences, struct.logit_rows = sizes[:3]
            struct.slots = self._slots_pointer if has_slots else None
            struct.tree = self._tree_pointer if has_trees else None

    def _too_large(self, plan: StepPlan) -> InvariantError:
        rows = sum(len(entry.rows) for entry in plan.entries)
        return InvariantError(
            f"a step of {plan.tokens} tokens, {rows} logit rows and {len(plan.entries)} sequences was planned; "
            f"the runner is built for {self._limits}"
        )

    def _check_room(self, entry: Entry) -> None:
        """Slots differ from positions once something was packed, so a long sequence may have enough after all."""
        tokens = len(entry.tokens)
        room = (
            len(blocks) * BLOCK_TOKENS + more - entry.slot(group)
            for group, (blocks, more) in enumerate(zip(entry.blocks, self._more, strict=False))
        )
        if entry.start + tokens > self._limits.context or min(room, default=tokens) < tokens:
            raise InvariantError(f"sequence {entry.sequence} would run past its blocks or the context")

    def _fill_tables(self, index: int, entries: int, entry: Entry) -> None:
        """A table that is the same object holds the same blocks: state.plan.Entry."""
        for group, blocks in enumerate(entry.blocks):
            begin = (group * entries + index) * self._table_stride
            count = min(len(blocks), self._table_stride)
            self._table[begin : begin + count] = blocks[:count]
        self._blocks[index] = entry.blocks
        rooms = (BLOCK_TOKENS * len(blocks) + more for blocks, more in zip(entry.blocks, self._more, strict=False))
        self._room[index] = min(rooms, default=BLOCK_TOKENS * self._limits.context)

    def _fill_states(self, entries: tuple[Entry, ...], slots: int) -> None:
        for index, entry in enumerate(entries):
            if not 0 <= entry.state < slots or entry.parents:
                raise InvariantError(
                    f"sequence {entry.sequence} has no slot of recurrent state, or branches without one"
                )
            self._state_slot[index] = entry.state

    def _fill_slots(self, entries: tuple[Entry, ...], tokens: int) -> None:
        slots = self._slots[: self._groups * tokens].reshape(self._groups, tokens)
        token = 0
        for entry in entries:
            count = len(entry.tokens)
            for group in range(self._groups):
                slots[group, token : token + count] = range(entry.slot(group), entry.slot(group) + count)
            token += count

    def _fill_trees(self, entries: tuple[Entry, ...]) -> None:
        """Masks of trees, and positions by depth."""
        token = 0
        for entry in entries:
            self._tree[token : token + len(entry.tokens)] = 0
            if entry.parents:
                _check_tree(entry)
            seen: list[int] = []
            for place, parent in enumerate(entry.parents):
                seen.append((seen[parent] if parent >= 0 else 0) | 1 << place)
                self._positions[token + place] = entry.start + seen[place].bit_count() - 1
            self._tree[token : token + len(seen)] = seen
            token += len(entry.tokens)

    def _fill_sampling(self, rows: list[LogitRow]) -> None:
        """A row's record stays while nothing but its position changes; histories and biases are written anew."""
        keys, positions = self._keys, self._sampling_view
        history: list[tuple[int, int]] = []
        bias: list[tuple[int, float]] = []
        laws = masks = 0
        for index, row in enumerate(rows):
            law = mask = 0
            positions[index * SAMPLING_WORDS + POSITION_WORD] = row.position
            if row.law:
                laws += 1
                law = laws
            if row.mask is not None:
                masks += 1
                mask = masks
                self._put_mask(mask, row.mask)
            sampling = row.sampling
            if row.history is None and not sampling.logit_bias:
                key = (sampling, row.choice, row.target, row.logprobs, law, mask)
                if key == keys[index]:
                    continue
                keys[index] = key
            else:
                keys[index] = None
            self._sampling[index] = self._packed(row, history, bias, law, mask)
        if laws > len(self._laws):
            self._laws = np.zeros((laws, self._vocabulary), np.float32)
            self.struct.laws = self._laws.ctypes.data
        if history or bias:
            self._point(history, bias)

    def _put_mask(self, number: int, mask: Mask) -> None:
        """number: from 1, in the order of the rows."""
        if number > len(self._masks):
            grown = np.zeros((2 * number, self._masks.shape[1]), np.uint32)
            grown[: len(self._masks)] = self._masks
            self._masks, self.struct.masks = grown, grown.ctypes.data
        self._masks[number - 1] = mask

    def results(self, plan: StepPlan) -> tuple[tuple[RowResult, ...], ...]:
        """Every entry's answers, a row each."""
        answers = []
        row = laws = 0
        sampled = self._sampled_view[: len(self._logit_tokens)].tolist()
        for entry in plan.entries:
            found = []
            for wanted in entry.rows:
                token = sampled[row] if wanted.target < 0 else wanted.target
                law = None
                if wanted.law:
                    law = self._laws[laws].copy()
                    laws += 1
                found.append(
                    RowResult(token, law=law) if wanted.logprobs < 0 else self._scored(row, wanted, token, law)
                )
                row += 1
            answers.append(tuple(found))
        return tuple(answers)

    def _scored(self, row: int, wanted: LogitRow, token: int, law: npt.NDArray[np.float32] | None) -> RowResult:
        ids, values = self._top_ids[row].tolist(), self._top_logprobs[row].tolist()
        top = tuple(zip(ids[: wanted.logprobs], values[: wanted.logprobs], strict=True))
        return RowResult(token, float(self._logprob[row]), int(self._rank[row]), top, law)

    def _packed(
        self, row: LogitRow, history: list[tuple[int, int]], bias: list[tuple[int, float]], law: int, mask: int
    ) -> tuple[Any, ...]:
        sampling = row.sampling
        history_begin, bias_begin = len(history), len(bias)
        if row.history is not None and row.target < 0:
            known, prompt = row.history
            counts = Counter(known[prompt:])
            history += [(token, counts.get(token, 0)) for token in dict.fromkeys(known)]
        if row.target < 0:
            bias += sampling.logit_bias.items()
        return (
            sampling.seed, row.choice, row.position, row.target, row.logprobs,
            sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k,
            sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty,
            history_begin, len(history), bias_begin, len(bias), law, mask,
        )  # fmt: skip

    def _point(self, history: list[tuple[int, int]], bias: list[tuple[int, float]]) -> None:
        ids = np.array([token for token, _ in history] or [0], np.int32)
        counts = np.array([count for _, count in history] or [0], np.int32)
        bias_ids = np.array([token for token, _ in bias] or [0], np.int32)
        values = np.array([value for _, value in bias] or [0], np.float32)
        self._pointed = (ids, counts, bias_ids, values)  # alive until the next fill
        self.struct.history_ids, self.struct.history_counts = ids.ctypes.data, counts.ctypes.data
        self.struct.bias_ids, self.struct.bias_values = bias_ids.ctypes.data, values.ctypes.data


def _ints(*shape: int) -> npt.NDArray[np.int32]:
    return np.zeros(shape, np.int32)


def _check_tree(entry: Entry) -> None:
    if len(entry.parents) != len(entry.tokens) or len(entry.tokens) > MOST_BRANCHED:
        raise InvariantError(
            f"a tree of {len(entry.parents)} parents for {len(entry.tokens)} tokens; at most {MOST_BRANCHED} can branch"
        )
    if entry.parents[0] != -1 or any(not -1 <= parent < place for place, parent in enumerate(entry.parents)):
        raise InvariantError(f"parents come before their children, and the first token has none: {entry.parents}")

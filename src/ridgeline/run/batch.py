"""NativeBatch: the step's arrays in the layout of RlBatch, allocated once and refilled for every plan."""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.kernels import native
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.state.plan import Entry, LogitRow, RowResult, StepPlan
from ridgeline.state.request import MAX_LOGPROBS

from .arena import StepLimits

# Mirrors RlSampling; checked against the ctypes struct below so that the two cannot drift apart.
SAMPLING = np.dtype(
    [
        ("seed", "u8"), ("choice", "i4"), ("position", "i4"), ("target", "i4"), ("logprobs", "i4"),
        ("temperature", "f4"), ("top_p", "f4"), ("min_p", "f4"), ("top_k", "i4"),
        ("repetition", "f4"), ("presence", "f4"), ("frequency", "f4"),
        ("history_begin", "i4"), ("history_end", "i4"), ("bias_begin", "i4"), ("bias_end", "i4"),
        ("law", "i4"), ("reserved", "i4"),
    ],
    align=True,
)  # fmt: skip


class NativeBatch:
    """fill(plan) before the call, results(plan) after it. Arrays are int32 unless named otherwise."""

    def __init__(
        self, limits: StepLimits, line_ns: npt.NDArray[np.int64], groups: int = 1, states: RecurrentPool | None = None,
        vocabulary: int = 0,
    ) -> None:  # fmt: skip
        """groups: KvGroups of the program, each with block tables and slots of its own. vocabulary: of the head."""
        if SAMPLING.itemsize != ctypes.sizeof(native.RlSampling):
            raise AssertionError("SAMPLING and RlSampling differ")
        self._limits, self._groups, self._vocabulary = limits, groups, vocabulary
        self._laws = np.zeros((0, vocabulary), np.float32)  # grows when a row asks for its distribution
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
        self.line_experts = _ints(len(line_ns))
        self._range = np.arange(limits.context, dtype=np.int32)
        batch = native.RlBatch()
        batch.table_stride = self._table_stride
        for field, array in (
            ("token_ids", self._ids), ("positions", self._positions), ("sequence_of", self._sequence_of),
            ("first_token", self._first), ("block_table", self._table), ("logit_token", self._logit_token),
            ("sampling", self._sampling), ("sampled", self._sampled), ("logprob", self._logprob),
            ("rank", self._rank), ("top_ids", self._top_ids), ("top_logprobs", self._top_logprobs),
            ("line_ns", line_ns), ("line_experts", self.line_experts),
        ):  # fmt: skip
            setattr(batch, field, array.ctypes.data)
        self.struct = batch
        self._kept: tuple[Any, ...] = ()
        self._state_slot = _ints(sequences)
        if states is not None:
            native.set_states(batch, states)
            batch.state_slot = self._state_slot.ctypes.data

    def fill(self, plan: StepPlan) -> None:
        entries, tokens = len(plan.entries), plan.tokens
        tables = self._table[: self._groups * entries * self._table_stride].reshape(
            self._groups, entries, self._table_stride
        )
        slots = self._slots[: self._groups * tokens].reshape(self._groups, tokens)
        has_trees = any(entry.parents for entry in plan.entries)
        has_slots = has_trees or any(entry.slots for entry in plan.entries)
        token = row = laws = 0
        history: list[tuple[int, int]] = []
        bias: list[tuple[int, float]] = []
        for index, entry in enumerate(plan.entries):
            count = len(entry.tokens)
            span = slice(token, token + count)
            self._ids[span] = entry.tokens
            self._positions[span] = self._range[entry.start : entry.start + count]
            self._sequence_of[span] = index
            self._first[index] = token
            self._state_slot[index] = entry.state
            for group in range(self._groups):
                first = entry.slot(group)
                needed = (first + count + BLOCK_TOKENS - 1) // BLOCK_TOKENS
                tables[group, index, :needed] = entry.blocks[group][:needed]
                if has_slots:
                    slots[group, span] = self._range[first : first + count]
            if has_trees:
                self._tree[span] = 0
                self._branch(entry, token)
            for wanted in entry.rows:
                self._logit_token[row] = token + wanted.offset
                self._sampling[row] = self._packed(wanted, history, bias, laws + 1 if wanted.law else 0)
                laws += wanted.law
                row += 1
            token += count
        if laws > len(self._laws):
            self._laws = np.zeros((laws, self._vocabulary), np.float32)
        self.struct.laws = self._laws.ctypes.data
        self._first[len(plan.entries)] = token
        self.struct.tokens, self.struct.sequences, self.struct.logit_rows = token, len(plan.entries), row
        self.struct.slots = self._slots.ctypes.data if has_slots else None
        self.struct.tree = self._tree.ctypes.data if has_trees else None
        self._point(history, bias)

    def _branch(self, entry: Entry, token: int) -> None:
        """Masks and positions of a tree whose first token is the batch's `token`."""
        seen: list[int] = []
        for place, parent in enumerate(entry.parents):
            seen.append((seen[parent] if parent >= 0 else 0) | 1 << place)
            self._positions[token + place] = entry.start + seen[place].bit_count() - 1
        self._tree[token : token + len(seen)] = seen

    def results(self, plan: StepPlan) -> tuple[tuple[RowResult, ...], ...]:
        answers = []
        row = laws = 0
        for entry in plan.entries:
            entry_rows = []
            for wanted in entry.rows:
                result = self._result(row, wanted)
                if wanted.law:
                    result = msgspec.structs.replace(result, law=self._laws[laws].copy())
                    laws += 1
                entry_rows.append(result)
                row += 1
            answers.append(tuple(entry_rows))
        return tuple(answers)

    def _result(self, row: int, wanted: LogitRow) -> RowResult:
        token = int(self._sampled[row]) if wanted.target < 0 else wanted.target
        if wanted.logprobs < 0:
            return RowResult(token)
        ids, values = self._top_ids[row], self._top_logprobs[row]
        top = tuple((int(ids[i]), float(values[i])) for i in range(wanted.logprobs))
        return RowResult(token, float(self._logprob[row]), int(self._rank[row]), top)

    def _packed(
        self, row: LogitRow, history: list[tuple[int, int]], bias: list[tuple[int, float]], law: int
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
            history_begin, len(history), bias_begin, len(bias), law, 0,
        )  # fmt: skip

    def _point(self, history: list[tuple[int, int]], bias: list[tuple[int, float]]) -> None:
        if not history and not bias:
            return
        ids = np.array([token for token, _ in history] or [0], np.int32)
        counts = np.array([count for _, count in history] or [0], np.int32)
        bias_ids = np.array([token for token, _ in bias] or [0], np.int32)
        values = np.array([value for _, value in bias] or [0], np.float32)
        self._kept = (ids, counts, bias_ids, values)  # alive until the next fill
        self.struct.history_ids, self.struct.history_counts = ids.ctypes.data, counts.ctypes.data
        self.struct.bias_ids, self.struct.bias_values = bias_ids.ctypes.data, values.ctypes.data


def _ints(*shape: int) -> npt.NDArray[np.int32]:
    return np.zeros(shape, np.int32)

"""The reference binding: lines run as their meaning in PyTorch, on views of the arena or on their own tensors.

Owns the StepView of a step. Slow and total: every storage and format works here through its NumPy pack and unpack.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.recurrent_pool import RecurrentPool
from ridgeline.memory.storage.hack import HackStorage
from ridgeline.memory.storage.storage import BLOCK_TOKENS, token_keys, token_values
from ridgeline.ops.protocols import Floats, Weight
from ridgeline.state.plan import Entry, LogitRow, RowResult, StepPlan


class TensorCache:
    """f32 tensors of weights, unpacked once, kept per device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._tensors: dict[int, Any] = {}

    def get(self, weight: Weight) -> Any:
        import torch  # noqa: PLC0415  heavy and optional

        if id(weight) not in self._tensors:
            self._tensors[id(weight)] = torch.from_numpy(np.ascontiguousarray(weight.unpack())).to(self._device)
        return self._tensors[id(weight)]

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * 4 for tensor in self._tensors.values())


class TorchStep:
    """Implements ops.step.StepView for one plan."""

    def __init__(
        self, plan: StepPlan, pools: tuple[KvPool, ...], tensors: TensorCache, device: str,
        states: RecurrentPool | None = None,
    ) -> None:  # fmt: skip
        import torch  # noqa: PLC0415  heavy and optional

        self._states = states
        self._plan, self._pools, self._tensors, self._device = plan, pools, tensors, device
        ids = [token for entry in plan.entries for token in entry.tokens]
        trees = [_ancestors(entry) for entry in plan.entries]
        self.trees = tuple(None if tree is None else torch.from_numpy(tree).to(device) for tree in trees)
        places = [
            entry.start + depth
            for entry, tree in zip(plan.entries, trees, strict=True)
            for depth in (range(len(entry.tokens)) if tree is None else (tree.sum(1) - 1).tolist())
        ]
        self.token_ids = torch.tensor(ids, dtype=torch.int64, device=device)
        self.positions = torch.tensor(places, dtype=torch.int64, device=device)
        starts = np.cumsum([0, *(len(entry.tokens) for entry in plan.entries)]).tolist()
        self.bounds = tuple(itertools.pairwise(starts))
        self.rows: tuple[LogitRow, ...] = tuple(row for entry in plan.entries for row in entry.rows)
        wanted = [begin + row.offset for begin, entry in zip(starts, plan.entries, strict=False) for row in entry.rows]
        self.logit_tokens = torch.tensor(wanted, dtype=torch.int64, device=device)
        self.results: list[RowResult | None] = [None] * len(self.rows)

    def tensor(self, weight: Weight) -> Any:
        return self._tensors.get(weight)

    def kv(self, group: int, layer: int) -> PagedView:
        return PagedView(self._plan, self._pools[group], group, layer, self._device)

    def state(self, layer: int) -> SlotView:
        if self._states is None:
            raise InvariantError("a recurrent line in a step without recurrent state")
        return SlotView(self._plan, self._states, layer, self._device)


class SlotView:
    """Implements ops.protocols.StateView on the slots of a RecurrentPool."""

    def __init__(self, plan: StepPlan, pool: RecurrentPool, layer: int, device: str) -> None:
        self._plan, self._pool, self._layer, self._device = plan, pool, layer, device

    def read_conv(self, sequence: int) -> Any:
        return self._read(sequence, self._pool.conv(self._plan.entries[sequence].state, self._layer))

    def write_conv(self, sequence: int, inputs: Any) -> None:
        self._pool.conv(self._plan.entries[sequence].state, self._layer)[:] = inputs.cpu().numpy()

    def read_scan(self, sequence: int) -> Any:
        return self._read(sequence, self._pool.scan(self._plan.entries[sequence].state, self._layer))

    def write_scan(self, sequence: int, state: Any) -> None:
        self._pool.scan(self._plan.entries[sequence].state, self._layer)[:] = state.cpu().numpy()

    def _read(self, sequence: int, kept: Floats) -> Any:
        import torch  # noqa: PLC0415  heavy and optional

        past = kept if self._plan.entries[sequence].start else np.zeros_like(kept)
        return torch.from_numpy(past.copy()).to(self._device)


class PagedView:
    """Implements ops.protocols.KvView on the pool's pages through the storage's pack and unpack."""

    def __init__(self, plan: StepPlan, pool: KvPool, group: int, layer: int, device: str) -> None:
        self._plan, self._pool, self._group, self._layer, self._device = plan, pool, group, layer, device

    def base(self, sequence: int) -> int:
        return self._plan.entries[sequence].slot(self._group)

    def append(self, k: Any, v: Any) -> None:
        keys, values = k.cpu().numpy(), v.cpu().numpy()  # [tokens, kv_heads, head_dim]
        pool, storage = self._pool, self._pool.storage
        fresh = np.zeros((BLOCK_TOKENS, keys.shape[2]), np.float32)
        row = 0
        for entry in self._plan.entries:
            begin = entry.slot(self._group)
            end = begin + len(entry.tokens)
            for block in range(begin // BLOCK_TOKENS, (end - 1) // BLOCK_TOKENS + 1):
                first, last = max(begin, block * BLOCK_TOKENS), min(end, (block + 1) * BLOCK_TOKENS)
                inside = slice(first - block * BLOCK_TOKENS, last - block * BLOCK_TOKENS)
                source = slice(row + first - begin, row + last - begin)
                for head in range(keys.shape[1]):
                    page = int(entry.blocks[self._group][block])
                    key_page = pool.keys(page, self._layer, head)
                    value_page = pool.values(page, self._layer, head)
                    fresh[:] = 0
                    fresh[inside] = keys[source, head]
                    token_keys(key_page)[inside] = token_keys(storage.pack_keys(fresh))[inside]
                    fresh[inside] = values[source, head]
                    token_values(value_page)[inside] = token_values(storage.pack_values(fresh))[inside]
                    if pool.mass is not None:
                        pool.mass[page, self._layer, head, inside] = 0
            row += len(entry.tokens)

    def close(self, recent: PagedView) -> None:
        pool, storage = self._pool, _of_blocks(self._pool)
        pages = storage.group // BLOCK_TOKENS
        for sequence, entry in enumerate(self._plan.entries):
            start = entry.slot(self._group)
            for block in range(start // storage.group, (start + len(entry.tokens)) // storage.group):
                places = range(block * pages, (block + 1) * pages)
                for head in range(pool.kv_heads):
                    keys, values = recent._pages(sequence, places, head)
                    packed = (
                        storage.pack_keys(keys, is_first=not block),
                        storage.pack_values(values, is_first=not block),
                    )
                    for place, key_page, value_page in zip(places, *packed, strict=True):
                        page = int(entry.blocks[self._group][place])
                        pool.keys(page, self._layer, head)[:] = key_page
                        pool.values(page, self._layer, head)[:] = value_page

    def _pages(self, sequence: int, places: range, head: int) -> tuple[Floats, Floats]:
        """K and V [tokens, head_dim] of neighbouring pages."""
        table, pool, dim = self._plan.entries[sequence].blocks[self._group], self._pool, self._pool.head_dim
        pages = [int(table[place]) for place in places]
        return (
            np.concatenate([pool.storage.unpack_keys(pool.keys(page, self._layer, head), dim) for page in pages]),
            np.concatenate([pool.storage.unpack_values(pool.values(page, self._layer, head), dim) for page in pages]),
        )

    def _read_closed(self, sequence: int) -> tuple[Any, Any]:
        """Of a BlockStorage: what its whole blocks mean, 0 behind them."""
        import torch  # noqa: PLC0415  heavy and optional

        entry, pool = self._plan.entries[sequence], self._pool
        storage, dim = _of_blocks(pool), pool.head_dim
        group = storage.group
        context = self.base(sequence) + len(entry.tokens)
        keys = np.zeros((context, pool.kv_heads, dim), np.float32)
        values = np.zeros_like(keys)
        for begin in range(0, context // group * group, group):
            first = begin // BLOCK_TOKENS
            pages = entry.blocks[self._group][first : first + group // BLOCK_TOKENS].tolist()
            for head in range(pool.kv_heads):
                stored = [np.stack([of(page, self._layer, head) for page in pages]) for of in (pool.keys, pool.values)]
                keys[begin : begin + group, head] = storage.unpack_keys(stored[0], dim)
                values[begin : begin + group, head] = storage.unpack_values(stored[1], dim)
        return torch.from_numpy(keys).to(self._device), torch.from_numpy(values).to(self._device)

    def read(self, sequence: int) -> tuple[Any, Any]:
        import torch  # noqa: PLC0415  heavy and optional

        entry, pool = self._plan.entries[sequence], self._pool
        if isinstance(pool.storage, HackStorage):
            return self._read_closed(sequence)
        context = self.base(sequence) + len(entry.tokens)
        blocks = [int(b) for b in entry.blocks[self._group][: (context + BLOCK_TOKENS - 1) // BLOCK_TOKENS]]
        heads, dim = pool.kv_heads, pool.head_dim
        keys = np.zeros((len(blocks) * BLOCK_TOKENS, heads, dim), np.float32)
        values = np.zeros_like(keys)
        for index, block in enumerate(blocks):
            if block < 0:  # dropped: nobody sees it
                continue
            inside = slice(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS)
            for head in range(heads):
                keys[inside, head] = pool.storage.unpack_keys(pool.keys(block, self._layer, head), dim)
                values[inside, head] = pool.storage.unpack_values(pool.values(block, self._layer, head), dim)
        return (
            torch.from_numpy(keys[:context]).to(self._device),
            torch.from_numpy(values[:context]).to(self._device),
        )

    def add_mass(self, sequence: int, mass: Any) -> None:
        if self._pool.mass is None:
            return
        blocks, added = self._plan.entries[sequence].blocks[self._group], mass.cpu().numpy()
        for begin in range(0, added.shape[1], BLOCK_TOKENS):
            page, block = added[:, begin : begin + BLOCK_TOKENS], int(blocks[begin // BLOCK_TOKENS])
            if block < 0:
                continue
            self._pool.mass[block, self._layer, :, : page.shape[1]] += page


def _of_blocks(pool: KvPool) -> HackStorage:
    if not isinstance(pool.storage, HackStorage):
        raise InvariantError(f"{pool.storage.name} keeps tokens by themselves")
    return pool.storage


def _ancestors(entry: Entry) -> npt.NDArray[np.bool_] | None:
    """[tokens, tokens]: which tokens of its tree each one sees."""
    if not entry.parents:
        return None
    seen = np.eye(len(entry.tokens), dtype=bool)
    for place, parent in enumerate(entry.parents):
        if parent >= 0:
            seen[place] |= seen[parent]
    return seen


def run_line(step: TorchStep, line: Any, values: Mapping[int, Any]) -> Any:
    """One line as its meaning; no autograd."""
    import torch  # noqa: PLC0415  heavy and optional

    with torch.inference_mode():
        return line.op.meaning(step, line, *(values[value.id] for value in line.inputs))

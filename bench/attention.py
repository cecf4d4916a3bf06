"""CPU time of attention by KV storage.   python bench/attention.py [--heads 9,3,64] [--isa avx512]

One thread, 8 layers (so that KV does not sit in the nearest cache), smallest of many: decoding one token, a prompt of
512 and chunks of 256 and 512 behind others, 16 tokens as a chain and as a tree, and decoding where attention mass is
kept. Thread time, so that other work on the machine counts little. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

from ridgeline.kernels import native
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES, make_storage
from ridgeline.ops.protocols import BlockStorage

LAYERS, NAN = 8, float("nan")
PARENTS = (-1, *((place - 1) // 2 for place in range(1, 16)))  # two children a token


def masks(parents: tuple[int, ...]) -> list[int]:
    """Of each token of a tree, a bit for itself and every ancestor."""
    found: list[int] = []
    for place, parent in enumerate(parents):
        found.append((found[parent] if parent >= 0 else 0) | 1 << place)
    return found


class Layers:
    """`count` tokens behind `context` kept ones, in LAYERS attend instructions."""

    def __init__(self, shape: tuple[int, int, int], storage: str, context: int, count: int, *, has_mass: bool = False):
        heads, kv_heads, dim = shape
        kept = make_storage(storage)
        self.closes = isinstance(kept, BlockStorage)
        blocks = -(-(context + count) // BLOCK_TOKENS)
        kinds = (kept, kept.recent) if self.closes else (kept,)
        pools = [
            KvPool(kind, layers=LAYERS, kv_heads=kv_heads, head_dim=dim, blocks=blocks, has_mass=has_mass)
            for kind in kinds
        ]
        rng = np.random.default_rng(0)
        for kind, pool in zip(kinds, pools, strict=True):
            tokens = kept.group if kind is kept and self.closes else BLOCK_TOKENS
            token = rng.standard_normal((tokens, dim)).astype(np.float32)
            pages = [pack(token).reshape(tokens // BLOCK_TOKENS, -1) for pack in (kind.pack_keys, kind.pack_values)]
            block = np.tile(np.concatenate(pages, 1)[:, None], (1, LAYERS * kv_heads, 1)).reshape(len(pages[0]), -1)
            pool.data[:] = np.resize(block, pool.data.shape)
        self.kv_bytes = pools[0].data.nbytes // LAYERS
        width, self.context, self.count = (heads + 2 * kv_heads) * dim, context, count
        self.pools = native.Pools(pools)
        self.arena = native.aligned(count * (width + heads * dim) * 4 + 64)
        out = -(-count * width * 4 // 64) * 64
        self.arena[: count * width * 4] = rng.standard_normal(count * width).astype(np.float32).view(np.uint8)
        fields: dict[str, Any] = {"in": 0, "in2": -1, "out": out, "in_quant": -1, "out_quant": -1}
        tape = [
            native.RlInstr(
                op=native.RL_ATTEND, width_in=width, width_out=heads * dim, heads=heads, kv_heads=kv_heads,
                head_dim=dim, scale=dim**-0.5, layer=layer, parts=1, recent=1, **fields,
            )
            for layer in range(LAYERS)
        ]  # fmt: skip
        self.tape = native.Tape(tape)
        self.scratch = native.aligned(1 << 22)
        self.arrays = {
            "positions": np.arange(context, context + count, dtype=np.int32),
            "sequence_of": np.zeros(count, np.int32), "first_token": np.array([0, count], np.int32),
            "block_table": np.tile(np.arange(blocks, dtype=np.int32), 2),
        }  # fmt: skip
        if not self.closes:
            self.arrays["slots"] = self.arrays["positions"]
        self.batch = native.RlBatch(tokens=count, sequences=1, table_stride=blocks)

    def branch(self) -> Layers:
        tree = masks(PARENTS)
        self.arrays["positions"] = self.context + np.array([mask.bit_count() - 1 for mask in tree], np.int32)
        self.arrays["tree"] = np.array(tree, np.uint64)
        return self

    def microseconds(self, team: native.Team, repeats: int) -> float:
        """Of one layer."""
        for name, array in self.arrays.items():
            setattr(self.batch, name, array.ctypes.data)
        best = float("inf")
        for _ in range(repeats):
            began = time.thread_time()
            native.execute(team, self.tape, self.arena, self.scratch, self.pools, self.batch)
            best = min(best, time.thread_time() - began)
        return best / LAYERS * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", default="9,3,64", help="query heads, kv heads, dimensions of a head")
    parser.add_argument("--isa", default=native.isa())
    options = parser.parse_args()
    native.set_isa(options.isa)
    shape = tuple(int(part) for part in options.heads.split(","))
    rows = []
    print(f"{options.isa}, heads {options.heads}; microseconds a layer")
    titles = (
        "1 @ 512", "1 @ 1024", "1 @ 4096", "512 @ 0", "256 @ 1024", "512 @ 3584", "chain 16", "tree 16",
        "1 @ 1024, mass",
    )  # fmt: skip
    widths = (10, 10, 10, 10, 12, 12, 10, 10, 16)
    print(f"{'KV':14}{'bytes/token':>12}" + "".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True)))
    with native.Team(1) as team:
        known = [name for name in STORAGES.names() if STORAGES.get(name).native >= 0]
        for storage in (*known, "hack", "hack:group=32"):
            closes = storage not in known  # keeps chains without mass only
            cells = [
                Layers(shape, storage, 512, 1).microseconds(team, 600),
                Layers(shape, storage, 1024, 1).microseconds(team, 400),
                Layers(shape, storage, 4096, 1).microseconds(team, 200),
                Layers(shape, storage, 0, 512).microseconds(team, 6),
                Layers(shape, storage, 1024, 256).microseconds(team, 8),
                Layers(shape, storage, 3584, 512).microseconds(team, 3),
                Layers(shape, storage, 1024, 16).microseconds(team, 100),
                NAN if closes else Layers(shape, storage, 1024, 16).branch().microseconds(team, 100),
                NAN if closes else Layers(shape, storage, 1024, 1, has_mass=True).microseconds(team, 200),
            ]
            stored = make_storage(storage).bytes_per_token(shape[1], shape[2])
            rows.append({"kv": storage, "bytes_per_token": stored, "us": [None if x != x else x for x in cells]})
            print(f"{storage:14}{stored:12}" + "".join(f"{x:{w}.1f}" for x, w in zip(cells, widths, strict=True)))
    print(json.dumps({"schema": "ridgeline.bench.attention/1", "isa": options.isa, "heads": shape, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

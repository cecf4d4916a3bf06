"""hack: K and V in blocks of tokens, two bits a number, multiplied as they are (E7; layout of HACK's ATC'26 code).

K has a scale and low for every channel of a block, V for every token and partition of channels; sums of codes are kept
beside them. Sinks and tokens of a block that is not whole yet lie in bf16 pages (`recent`). Owns layout and rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.ops.protocols import Floats

from .bf16 import STORAGE as BF16
from .bf16 import widen
from .int4 import LEAST, toward
from .storage import BLOCK_TOKENS, Bytes, Storage

CODES = np.float32(3)
BLOCKS = (32, 64)  # at 16 tokens it would take as many bits as int4
NATIVE = 4  # RL_KV_CLOSED
SHIFTS = 8 * (np.arange(BLOCK_TOKENS) % 4) + 2 * (np.arange(BLOCK_TOKENS) // 4)  # of 16 codes in a word


@dataclass(frozen=True, slots=True)
class HackOptions:
    group: Annotated[int, "tokens of a block and channels of a partition: 32 or 64"] = 64
    sinks: Annotated[int, "first tokens that stay in bf16"] = 4


class Closed(NamedTuple):
    """One block of one kv head: x = codes * scale + low. sums: of codes, along what products add up."""

    codes: npt.NDArray[np.uint8]  # [block, head_dim]
    scale: Floats  # K [1, head_dim], V [block, head_dim]: repeated over its partition
    low: Floats
    sums: npt.NDArray[np.uint8]  # K [partitions, block] over channels, V [head_dim] over tokens


class HackStorage:
    """Pages of 16 tokens, a block's together: words of 16 codes, then scales and lows, then sums (attend_closed.h).

    bits a number: 2 + 32 / group + 8 / group, K and V alike.
    """

    determinism = "bitwise"
    recent: Storage = BF16

    def __init__(self, options: HackOptions) -> None:
        if options.group not in BLOCKS or not 0 <= options.sinks <= BLOCK_TOKENS:
            raise UserError(
                f"hack with group={options.group}, sinks={options.sinks}: a group is 32 or 64 tokens, and at most "
                f"{BLOCK_TOKENS} of them sinks. Write --kv hack:group=64,sinks=4."
            )
        self.group, self.sinks = options.group, options.sinks
        self.name = f"hack:group={self.group},sinks={self.sinks}"
        self.native = NATIVE | self.group // BLOCK_TOKENS << 8 | self.sinks << 16

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """Of a closed block; tokens that are not closed are `recent`'s."""
        self.check_dim(head_dim)
        return 2 * kv_heads * (head_dim // 4 + 5 * head_dim // self.group)

    def page_bytes(self, head_dim: int) -> int:
        self.check_dim(head_dim)
        return BLOCK_TOKENS * (head_dim // 4 + 5 * head_dim // self.group)

    def check_dim(self, head_dim: int) -> None:
        """UserError unless heads are whole partitions."""
        if head_dim % self.group:
            fitting = [str(group) for group in BLOCKS if head_dim % group == 0]
            cure = f"Try --kv hack:group={fitting[-1]}" if fitting else "Try --kv int4"
            raise UserError(
                f"--kv {self.name} needs heads of a multiple of {self.group}; here they have {head_dim}. {cure}."
            )

    # -- one block of one kv head: f32 [group, head_dim] <-> pages [group / 16, page_bytes]

    def pack_keys(self, keys: Floats, *, is_first: bool = False) -> npt.NDArray[np.uint8]:
        kept = self.close_keys(keys, is_first=is_first)
        words = kept.codes.reshape(-1, BLOCK_TOKENS, keys.shape[1] // 16, 16).transpose(0, 2, 1, 3)  # 16: dimensions
        sums = kept.sums.reshape(len(kept.sums), -1, BLOCK_TOKENS).transpose(1, 0, 2)
        return self._pages(words, np.stack([kept.scale[0], kept.low[0]], -1), sums)

    def pack_values(self, values: Floats, *, is_first: bool = False) -> npt.NDArray[np.uint8]:
        kept = self.close_values(values, is_first=is_first)
        words = kept.codes.reshape(-1, BLOCK_TOKENS, values.shape[1]).transpose(0, 2, 1)  # 16: tokens
        pairs = np.stack([kept.scale[:, :: self.group], kept.low[:, :: self.group]], -1)  # [block, partitions, 2]
        pairs = pairs.reshape(-1, BLOCK_TOKENS, *pairs.shape[1:]).swapaxes(1, 2)
        return self._pages(words, pairs, kept.sums)

    def _pages(self, words: npt.NDArray[np.uint8], pairs: Floats, sums: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        pages = self.group // BLOCK_TOKENS
        codes = (words.astype(np.uint32) << SHIFTS.astype(np.uint32)).sum(-1, dtype=np.uint32)
        halves = (np.ascontiguousarray(pairs).view(np.uint32) >> 16).astype(np.uint16)  # they are bfloat16 already
        parts = (codes, halves, sums)
        return np.concatenate([np.ascontiguousarray(part).view(np.uint8).reshape(pages, -1) for part in parts], -1)

    def unpack_keys(self, pages: Bytes, head_dim: int) -> Floats:
        words, pairs, _ = self._parts(pages, head_dim)
        codes = _codes(words.reshape(len(pages), -1, BLOCK_TOKENS)).transpose(0, 2, 1, 3).reshape(-1, head_dim)
        scale, low = pairs.reshape(head_dim, 2).T
        return np.asarray(codes * scale + low, np.float32)

    def unpack_values(self, pages: Bytes, head_dim: int) -> Floats:
        words, pairs, _ = self._parts(pages, head_dim)
        codes = _codes(words).transpose(0, 2, 1).reshape(-1, head_dim)
        pairs = pairs.reshape(len(pages), -1, BLOCK_TOKENS, 2).swapaxes(1, 2).reshape(len(codes), -1, 2)
        scale, low = (np.repeat(pairs[..., i], self.group, 1) for i in range(2))
        return np.asarray(codes * scale + low, np.float32)

    def _parts(self, pages: Bytes, head_dim: int) -> tuple[npt.NDArray[np.uint32], Floats, Bytes]:
        """Words [pages, head_dim], scales and lows as floats [pages, rest], sums [pages, rest]."""
        ends = (4 * head_dim, 4 * head_dim + 64 * head_dim // self.group)
        words, pairs, sums = np.split(pages.reshape(-1, self.page_bytes(head_dim)), ends, 1)
        return (
            np.ascontiguousarray(words).view(np.uint32), widen(np.ascontiguousarray(pairs).view(np.uint16)), sums,
        )  # fmt: skip

    # -- rounding

    def close_keys(self, keys: Floats, *, is_first: bool = False) -> Closed:
        """keys: [group, head_dim] of one kv head; is_first: of a sequence, so that its sinks count for nothing."""
        left_out = self._left_out(keys, is_first)
        scale, low = _scales(keys[left_out:], 0)
        codes = _round(keys, scale, low)
        codes[:left_out] = 0
        sums = codes.reshape(self.group, -1, self.group).sum(-1).T
        return Closed(codes, scale, low, sums.astype(np.uint8))

    def close_values(self, values: Floats, *, is_first: bool = False) -> Closed:
        left_out = self._left_out(values, is_first)
        parts = values.reshape(self.group, -1, self.group)
        scale, low = (np.repeat(x[..., 0], self.group, 1) for x in _scales(parts, 2))
        scale[:left_out] = low[:left_out] = 0
        codes = _round(values, scale, low)
        return Closed(codes, scale, low, codes.sum(0).astype(np.uint8))

    def _left_out(self, block: Floats, is_first: bool) -> int:
        if block.ndim != 2 or len(block) != self.group:
            raise InvariantError(f"a block holds [{self.group}, head_dim], not {list(block.shape)}")
        self.check_dim(block.shape[1])
        return self.sinks if is_first else 0


def _scales(x: Floats, axis: int) -> tuple[Floats, Floats]:
    low = widen(toward(x.min(axis, keepdims=True), up=False))
    return widen(toward((x.max(axis, keepdims=True) - low) / CODES, up=True)), low


def _round(x: Floats, scale: Floats, low: Floats) -> npt.NDArray[np.uint8]:
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > LEAST)
    return np.asarray(np.rint(np.clip((x - low) * inverse, 0, CODES)), np.uint8)


def _codes(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """[...] -> [..., 16] codes."""
    return np.asarray(words[..., None] >> SHIFTS.astype(np.uint32) & np.uint32(3))


def make(options: HackOptions) -> HackStorage:
    return HackStorage(options)

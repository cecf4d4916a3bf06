"""KvPool: the bytes of the paged KV cache, one anonymous zero mapping. Layout is RlPool's (kernels/cpp/ridgeline.h).

Block-major, then layer, then kv head; at each a K page, then a V page. Owns the mapping; who holds which block is
BlockPool's matter, what is inside a page is the storage's.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import CapacityError, InvariantError

from .storage.storage import BLOCK_TOKENS, Storage

Bytes = npt.NDArray[np.uint8]
Units = npt.NDArray[np.uint32]


class KvPool:
    """`blocks` blocks of BLOCK_TOKENS tokens for every layer and kv head. The system gives memory on first touch.

    has_mass: also keep the attention mass that each token has got (C10): attention adds to it, a new token begins at 0.
    """

    def __init__(
        self, storage: Storage, *, layers: int, kv_heads: int, head_dim: int, blocks: int, has_mass: bool = False
    ) -> None:
        if min(layers, kv_heads, head_dim, blocks) < 1:
            raise InvariantError(f"KV pool of {layers=} {kv_heads=} {head_dim=} {blocks=}: all must be positive")
        self.storage = storage
        self.layers, self.kv_heads, self.head_dim, self.blocks = layers, kv_heads, head_dim, blocks
        self.block_tokens = BLOCK_TOKENS
        self.page_bytes = storage.page_bytes(head_dim)
        self.head_stride = 2 * self.page_bytes
        self.layer_stride = kv_heads * self.head_stride
        self.block_stride = layers * self.layer_stride
        self.data: Bytes = zeros(blocks * self.block_stride)  # [blocks * block_stride]
        shape = (blocks, layers, kv_heads, BLOCK_TOKENS)
        self.mass = zeros(4 * math.prod(shape)).view(np.float32).reshape(shape) if has_mass else None

    @staticmethod
    def bytes_for(
        storage: Storage, *, layers: int, kv_heads: int, head_dim: int, blocks: int, has_mass: bool = False
    ) -> int:
        """Bytes of such a pool, without making it."""
        return blocks * layers * kv_heads * (2 * storage.page_bytes(head_dim) + 4 * BLOCK_TOKENS * has_mass)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes) + (0 if self.mass is None else int(self.mass.nbytes))

    def block(self, block: int) -> Bytes:
        """Everything kept in a block [block_stride], all layers and heads; a writable view."""
        start = self._offset(block, 0, 0)
        return self.data[start : start + self.block_stride]

    def key_units(self) -> Units:
        """All K pages [blocks, layers, kv_heads, BLOCK_TOKENS, units of 4 bytes], a writable view."""
        return self._pages()[..., 0, :].reshape(*self._shape, -1, BLOCK_TOKENS).swapaxes(-1, -2)

    def value_units(self) -> Units:
        """All V pages [blocks, layers, kv_heads, BLOCK_TOKENS, units of 4 bytes], a writable view."""
        return self._pages()[..., 1, :].reshape(*self._shape, BLOCK_TOKENS, -1)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.blocks, self.layers, self.kv_heads

    def _pages(self) -> Units:
        return self.data.view(np.uint32).reshape(*self._shape, 2, -1)

    def keys(self, block: int, layer: int, head: int) -> Bytes:
        """The K page [page_bytes], a writable view."""
        start = self._offset(block, layer, head)
        return self.data[start : start + self.page_bytes]

    def values(self, block: int, layer: int, head: int) -> Bytes:
        """The V page [page_bytes], a writable view."""
        start = self._offset(block, layer, head) + self.page_bytes
        return self.data[start : start + self.page_bytes]

    def _offset(self, block: int, layer: int, head: int) -> int:
        if not (0 <= block < self.blocks and 0 <= layer < self.layers and 0 <= head < self.kv_heads):
            raise InvariantError(f"no page at block {block}, layer {layer}, head {head} of this pool")
        return block * self.block_stride + layer * self.layer_stride + head * self.head_stride


def zeros(nbytes: int) -> Bytes:
    """Private anonymous memory: zero, page-aligned, untouched until written; huge pages where the system has them."""
    try:
        mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise CapacityError(
            f"the system refused {nbytes / 2**30:.1f} GiB for the KV pool ({error.strerror}). "
            f"Ask for less with --kv-bytes, or a shorter --context."
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without huge pages: slower, not wrong
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, dtype=np.uint8)

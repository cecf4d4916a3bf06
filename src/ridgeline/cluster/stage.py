"""Stage: blocks that the step under way fills, sent layer by layer while it computes later layers (E8).

Parts are claimed in order, each once: by the sending thread while the step runs, by the engine's thread afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import msgspec

from ridgeline.state.ports import KeptState

from .messages import Block, Message
from .wire import Bytes

PARTS = 4  # of a block's layers: a message takes 0.1 ms whatever its length
LEAST_STAGED = 4  # blocks: fewer travel in less time than waiting in parts takes
LOOK_S = 1e-3


class Part(msgspec.Struct, frozen=True):
    """A block's bytes of a few layers. layers: as many of the group's must be done."""

    message: Block
    payload: Bytes
    layers: int


class Stage:
    """until: index behind the last block."""

    def __init__(
        self, kept: KeptState, granted: set[int], stream: int, first: int, tables: Sequence[Sequence[int]]
    ) -> None:
        """granted: streams that may be sent, as they become known. tables: by group, where the pool has the blocks from
        index `first` on; -1: nothing to send."""
        self._kept, self._granted, self._stream = kept, granted, stream
        self.until = first + len(tables[0])
        self._parts = list(self._cut(first, tables))
        self._next = 0
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def is_begun(self) -> bool:
        return self._next > 0

    def parts_ready(self) -> Iterator[tuple[Message, Bytes]]:
        """Each as soon as it may go; ends with the last one, or when the stage was closed."""
        while True:
            with self._lock:
                if self._is_closed or self._next == len(self._parts):
                    return
                part = self._parts[self._next]
                is_ready = self._is_ready(part)
                self._next += is_ready
            if is_ready:
                yield part.message, part.payload
            else:
                time.sleep(LOOK_S)

    def close(self) -> list[tuple[Message, Bytes]]:
        """What nobody has claimed."""
        with self._lock:
            self._is_closed = True
            return [(part.message, part.payload) for part in self._parts[self._next :]]

    def _is_ready(self, part: Part) -> bool:
        return self._stream in self._granted and self._kept.layers_done(part.message.group) >= part.layers

    def _cut(self, first: int, tables: Sequence[Sequence[int]]) -> Iterator[Part]:
        """First layers of all blocks, then the next ones."""
        for number in range(PARTS):
            for place in range(len(tables[0])):
                for group, table in enumerate(tables):
                    layers, nbytes = self._kept.layers(group), self._kept.block_bytes[group]
                    begin, end = (layers * edge // PARTS for edge in (number, number + 1))
                    at, to = (nbytes // layers * edge for edge in (begin, end))
                    if at < to and table[place] >= 0:
                        payload = self._kept.block(group, table[place])[at:to]
                        yield Part(Block(self._stream, group, first + place, at), payload, end)

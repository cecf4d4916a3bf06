"""Slots: payloads in memory that both engines have mapped; the stream only says which slot. The sender's slots.

A slot is written by the sender, read by the receiver, and written again only when the receiver has said so.
"""

from __future__ import annotations

import mmap
import os
import threading

import numpy as np

from .wire import Bytes, LinkBroken

COUNT = 16  # payloads on their way


class Slots:
    """number: file descriptor of COUNT slots, each of slot_bytes; it is closed here, the mapping stays."""

    def __init__(self, number: int, slot_bytes: int) -> None:
        try:
            self._mapping = mmap.mmap(number, COUNT * slot_bytes)
        finally:
            os.close(number)
        self._slots = np.frombuffer(self._mapping, np.uint8).reshape(COUNT, slot_bytes)
        self._free = list(range(COUNT))
        self._changed = threading.Condition()
        self._is_closed = False

    @staticmethod
    def bytes_for(slot_bytes: int) -> int:
        """Of the shared memory of one link."""
        return COUNT * slot_bytes

    def load(self, payload: Bytes) -> tuple[int | None, Bytes]:
        if payload.nbytes > self._slots.shape[1]:
            raise LinkBroken(f"a payload of {payload.nbytes} bytes does not fit into a slot of {self._slots.shape[1]}")
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._is_closed)
            if self._is_closed:
                raise LinkBroken("the link was closed")
            slot = self._free.pop()
        self._slots[slot, : payload.nbytes] = payload
        return slot, self._slots[slot, : payload.nbytes]

    def unload(self, slot: int, into: Bytes) -> None:
        if slot >= COUNT or into.nbytes > self._slots.shape[1]:
            raise LinkBroken(f"{into.nbytes} bytes cannot be in slot {slot}")
        into[:] = self._slots[slot, : into.nbytes]

    def is_free_again(self, slot: int) -> None:
        with self._changed:
            if slot >= COUNT or slot in self._free:
                raise LinkBroken(f"slot {slot} was given back and was not taken")
            self._free.append(slot)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

"""Frames between engines: a header with lengths and checksums, a message, and perhaps a payload.

Owns the bytes of a frame and refuses, before reading on, what is not one. A link that broke once is not used again.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import RidgelineError

Bytes = npt.NDArray[np.uint8]

MAGIC = b"RLk1"
FIELDS = struct.Struct("<4sBxHIIQI")  # magic, kind, slot, head bytes, payload bytes, number, payload checksum
HEADER = struct.Struct("<28sI")  # FIELDS, checksum of FIELDS and head
HEAD_BYTES = 1 << 26  # a prompt of ten million tokens is 50 MB
PAYLOAD_BYTES = 1 << 30  # one block of one group of layers
PLAIN, IN_SLOT, SLOT_FREE = KINDS = (0, 1, 2)
FOLD = 256  # words in a row of the checksum's table


class LinkBroken(RidgelineError):
    """The other end is gone, or what it sent is not what it should be; nothing of this link can be trusted."""


@dataclass(frozen=True, slots=True)
class Header:
    """kind: PLAIN (payload follows the head), IN_SLOT (it lies in shared memory) or SLOT_FREE (no head, no payload)."""

    kind: int
    slot: int
    head_bytes: int
    payload_bytes: int
    number: int
    payload_sum: int
    head_sum: int

    def check_head(self, packed: bytes, head: bytes) -> None:
        """packed: the header as it came."""
        if zlib.crc32(head, zlib.crc32(packed[: FIELDS.size])) != self.head_sum:
            raise LinkBroken(f"frame {self.number} is corrupt: its message does not have the checksum it came with")

    def check_payload(self, payload: Bytes) -> None:
        if checksum(payload) != self.payload_sum:
            raise LinkBroken(f"frame {self.number} is corrupt: its payload does not have the checksum it came with")


def pack_header(kind: int, slot: int, head: bytes, payload: Bytes | None, number: int) -> bytes:
    """The header of a frame."""
    length = 0 if payload is None else payload.nbytes
    if len(head) > HEAD_BYTES or length > PAYLOAD_BYTES:
        raise LinkBroken(f"a frame of {len(head)} and {length} bytes is over the limits {HEAD_BYTES}, {PAYLOAD_BYTES}")
    fields = FIELDS.pack(MAGIC, kind, slot, len(head), length, number, 0 if payload is None else checksum(payload))
    return HEADER.pack(fields, zlib.crc32(head, zlib.crc32(fields)))


def unpack_header(packed: bytes, expected: int) -> Header:
    """LinkBroken for what no header is. expected: the frame's number."""
    if len(packed) != HEADER.size:
        raise LinkBroken(f"a header has {HEADER.size} bytes, not {len(packed)}")
    fields, head_sum = HEADER.unpack(packed)
    magic, kind, slot, head_bytes, payload_bytes, number, payload_sum = FIELDS.unpack(fields)
    if magic != MAGIC or kind not in KINDS:
        raise LinkBroken("what came is no frame")
    if head_bytes > HEAD_BYTES or payload_bytes > PAYLOAD_BYTES or (kind == SLOT_FREE and head_bytes + payload_bytes):
        raise LinkBroken(
            f"a frame of {head_bytes} and {payload_bytes} bytes was announced; the limits are {HEAD_BYTES} and "
            f"{PAYLOAD_BYTES}"
        )
    if number != expected:
        raise LinkBroken(f"frame {expected} should come next, not {number}")
    return Header(kind, slot, head_bytes, payload_bytes, number, payload_sum, head_sum)


def checksum(data: Bytes) -> int:
    """32 bits over the sums of a table's columns and rows, so at the speed of memory (10 times that of a CRC here).

    Any one changed word changes a sum; rows that changed places change the order of sums.
    """
    whole = data.nbytes // (8 * FOLD) * 8 * FOLD
    table = data[:whole].view(np.uint64).reshape(-1, FOLD)
    code = zlib.crc32(np.add.reduce(table, axis=0).tobytes(), data.nbytes)
    code = zlib.crc32(np.add.reduce(table, axis=1).tobytes(), code)
    return zlib.crc32(data[whole:].tobytes(), code)

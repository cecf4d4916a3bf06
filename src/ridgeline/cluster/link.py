"""Link: whole messages and payloads between two engines over a connected stream socket; one reader, many writers.

How a payload travels is its carriage's matter: in the stream (tcp), or in slots of shared memory (shm).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from .messages import Message
from .wire import HEADER, IN_SLOT, PLAIN, SLOT_FREE, Bytes, Header, LinkBroken, pack_header, unpack_header

Room = Callable[[Message, int], Bytes]  # where a payload of so many bytes goes; LinkBroken when it is not wanted


class Carriage(Protocol):
    """Takes payloads from one end to the other."""

    def load(self, payload: Bytes) -> tuple[int | None, Bytes]:
        """The slot it was put in, waiting for a free one (None: it goes through the stream), and the bytes that travel:
        a copy, so that nobody changes them between checksum and sending. LinkBroken when closed."""
        ...

    def unload(self, slot: int, into: Bytes) -> None: ...

    def is_free_again(self, slot: int) -> None:
        """The other end has unloaded it."""
        ...

    def close(self) -> None: ...


class InStream:
    """tcp: a payload follows its message."""

    def load(self, payload: Bytes) -> tuple[int | None, Bytes]:
        return None, payload.copy()

    def unload(self, slot: int, into: Bytes) -> None:
        raise LinkBroken("a payload in a slot, and this link has none")

    def is_free_again(self, slot: int) -> None:
        raise LinkBroken("a slot was given back, and this link has none")

    def close(self) -> None:
        pass


class Link:
    """bytes_sent, bytes_received: of payloads. rate: bytes of them a second that it does not exceed; 0: no limit."""

    def __init__(self, connection: socket.socket, carriage: Carriage, *, rate: float = 0.0) -> None:
        self._connection, self._carriage, self.rate = connection, carriage, rate
        self._reader: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
        self._lock = threading.Lock()
        self._sent = self._received = 0
        self._free_at = 0.0  # when a throttled link has sent what it was given
        self.bytes_sent = self.bytes_received = 0
        self.is_closed = False

    def send(self, message: Message, payload: Bytes | None = None) -> None:
        """Blocks while the way is full. LinkBroken when nobody is there; thread-safe."""
        head = msgspec.msgpack.encode(message)
        if payload is not None and self.rate:
            self._pace(payload.nbytes)
        slot: int | None = None
        if payload is not None:
            slot, payload = self._carriage.load(payload)
        with self._lock:
            packed = pack_header(PLAIN if slot is None else IN_SLOT, slot or 0, head, payload, self._sent)
            self._sent += 1
            self._send_all(packed + head)
            if payload is not None and slot is None:
                self._send_all(payload.data)
            self.bytes_sent += 0 if payload is None else payload.nbytes

    def receive(self, room: Room) -> Message:
        """The next message, its payload (if it has one) put where `room` says. LinkBroken at the end, and for what is
        not what was sent."""
        while True:
            packed = self._read(HEADER.size)
            header = unpack_header(packed, self._received)
            self._received += 1
            head = self._read(header.head_bytes)
            header.check_head(packed, head)
            if header.kind == SLOT_FREE:
                self._carriage.is_free_again(header.slot)
                continue
            try:
                message = self._reader.decode(head)
            except msgspec.DecodeError as error:
                raise LinkBroken(f"frame {header.number} holds no message: {error}") from error
            if header.payload_bytes:
                self._take_payload(header, room(message, header.payload_bytes))
            return message

    def close(self) -> None:
        """Both directions end; who waits in send or receive gets LinkBroken."""
        self.is_closed = True
        self._carriage.close()
        with contextlib.suppress(OSError):  # the other end may have been faster
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    # -- inside

    def _take_payload(self, header: Header, into: Bytes) -> None:
        if into.nbytes != header.payload_bytes:
            raise LinkBroken(f"a payload of {header.payload_bytes} bytes came where {into.nbytes} belong")
        if header.kind == PLAIN:
            self._read_into(into.data)
        else:
            self._carriage.unload(header.slot, into)
        header.check_payload(into)
        self.bytes_received += into.nbytes
        if header.kind == IN_SLOT:
            with self._lock:
                packed = pack_header(SLOT_FREE, header.slot, b"", None, self._sent)
                self._sent += 1
                self._send_all(packed)

    def _send_all(self, data: bytes | memoryview) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise LinkBroken(f"the other engine is gone ({error})") from error

    def _read(self, count: int) -> bytes:
        data = bytearray(count)
        self._read_into(memoryview(data))
        return bytes(data)

    def _read_into(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            try:
                count = self._connection.recv_into(view[at:])
            except OSError as error:
                raise LinkBroken(f"the other engine is gone ({error})") from error
            if not count:
                raise LinkBroken("the other engine has closed the link")
            at += count

    def _pace(self, nbytes: int) -> None:
        """Waits as long as a link of this rate needs for the payload: it arrives after that, not before."""
        now = time.perf_counter()
        self._free_at = max(now, self._free_at) + nbytes / self.rate
        time.sleep(max(0.0, self._free_at - now))

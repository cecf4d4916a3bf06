"""Frames: whole messages over a stream socket, a 4-byte length and then msgpack. No pickle, nothing half-read.

Both ends of the engine's process use it. Refuses frames over FRAME_BYTES before reading them. One thread may send
while another receives.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import Generic, TypeVar

import msgspec

from ridgeline.kit.errors import InvariantError

LENGTH = struct.Struct("<I")
FRAME_BYTES = 1 << 28  # a prompt of ten million tokens is 50 MB; more than this is a broken peer
READ_BYTES = 1 << 18

Received = TypeVar("Received")


class Closed(Exception):
    """The other end has gone away."""


class Frames(Generic[Received]):
    """`received`: the type (a tagged union) of what comes in; anything else raises msgspec.ValidationError."""

    def __init__(self, connection: socket.socket, received: object) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._number = connection.fileno()
        self._reader: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(received)
        self._writer = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()
        self._buffer = bytearray()

    def watch(self, number: int) -> None:
        """Whatever else is readable ends a wait too. number: a file descriptor."""
        self._poll.register(number, select.POLLIN)

    def send(self, message: object) -> None:
        """Blocks until the system has taken the whole frame. Closed when nobody is there; thread-safe."""
        body = self._writer.encode(message)
        if len(body) > FRAME_BYTES:
            raise InvariantError(f"a message of {len(body)} bytes is over the limit of {FRAME_BYTES}")
        try:
            with self._lock:
                self._connection.sendall(LENGTH.pack(len(body)) + body)
        except OSError as error:
            raise Closed(str(error)) from error

    def receive(self, wait: bool = True) -> Received | None:
        """The next message. wait=False, or woken by what `watch` was given: None when none is complete yet. Closed at
        the end of the stream."""
        while True:
            frame = self._next_frame()
            if frame is not None:
                return self._reader.decode(frame)
            if all(number != self._number for number, _ in self._poll.poll(None if wait else 0)):
                return None
            try:
                data = self._connection.recv(READ_BYTES)
            except OSError as error:
                raise Closed(str(error)) from error
            if not data:
                raise Closed("end of stream")
            self._buffer += data

    @property
    def has_ended(self) -> bool:
        """Whether the other end is gone, though what it said before may not have been read yet."""
        try:
            look = select.poll()
            look.register(self._connection, select.POLLRDHUP)
            return bool(look.poll(0))
        except (OSError, ValueError):  # closed
            return True

    def close(self) -> None:
        """Ends both directions; a thread blocked in receive gets Closed."""
        with contextlib.suppress(OSError):  # the other end may have been faster
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _next_frame(self) -> bytes | None:
        if len(self._buffer) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._buffer)
        if length > FRAME_BYTES:
            raise InvariantError(f"a frame of {length} bytes was announced; the limit is {FRAME_BYTES}")
        end = LENGTH.size + length
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[LENGTH.size : end])
        del self._buffer[:end]
        return frame

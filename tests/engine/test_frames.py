"""Frames: whole messages or none, whatever the socket does to them."""

from __future__ import annotations

import socket
import threading

import msgspec
import pytest

from ridgeline.engine.frames import FRAME_BYTES, LENGTH, Closed, Frames
from ridgeline.kit.errors import InvariantError
from ridgeline.state.messages import Add, Cancel, Shutdown, ToEngine
from ridgeline.state.request import Request


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_frames_arrive_whole_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = Frames[ToEngine](ends[0], ToEngine), Frames[ToEngine](ends[1], ToEngine)
    big = Add(Request("big", tuple(range(300_000)), 1))
    messages = [Cancel("a"), big, Shutdown()]
    sender = threading.Thread(target=lambda: [near.send(message) for message in messages])
    sender.start()
    assert [far.receive() for _ in messages] == messages
    sender.join()
    assert far.receive(wait=False) is None
    near.close()
    with pytest.raises(Closed):
        far.receive()
    far.close()


def test_half_a_frame_is_no_message(ends: tuple[socket.socket, socket.socket]) -> None:
    far = Frames[ToEngine](ends[1], ToEngine)
    body = msgspec.msgpack.encode(Cancel("a"))
    frame = LENGTH.pack(len(body)) + body
    for piece in (frame[:2], frame[2:7], frame[7:-1]):
        ends[0].sendall(piece)
        assert far.receive(wait=False) is None
    ends[0].sendall(frame[-1:] + frame)
    assert far.receive() == far.receive(wait=False) == Cancel("a")
    ends[0].close()
    far.close()


def test_an_absurd_length_is_refused_before_it_is_read(ends: tuple[socket.socket, socket.socket]) -> None:
    far = Frames[ToEngine](ends[1], ToEngine)
    ends[0].sendall(LENGTH.pack(FRAME_BYTES + 1))
    with pytest.raises(InvariantError, match="announced"):
        far.receive()
    ends[0].close()
    far.close()


def test_sending_to_nobody_is_closed(ends: tuple[socket.socket, socket.socket]) -> None:
    near = Frames[ToEngine](ends[0], ToEngine)
    ends[1].close()
    with pytest.raises(Closed):
        for _ in range(3):
            near.send(Shutdown())
    near.close()

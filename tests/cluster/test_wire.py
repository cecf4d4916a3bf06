"""Frames: whatever comes, it is a frame as it was sent, or the link is broken; nothing is read on, nothing hangs."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.cluster.link import InStream, Link
from ridgeline.cluster.messages import Block, Drop, Go, Message
from ridgeline.cluster.shared import COUNT, Slots
from ridgeline.cluster.wire import FOLD, HEAD_BYTES, HEADER, Bytes, LinkBroken, checksum, pack_header, unpack_header


def room(message: Message, nbytes: int) -> Bytes:
    if nbytes > 1 << 20:
        raise LinkBroken("more than anybody sends here")
    return np.empty(nbytes, np.uint8)


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 8 * FOLD - 1, 8 * FOLD, 8 * FOLD + 9, 5 * 8 * FOLD + 3])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_every_changed_byte_changes_the_checksum(nbytes: int, data: st.DataObject) -> None:
    payload = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)
    before = checksum(payload)
    assert checksum(payload.copy()) == before
    if nbytes:
        payload[data.draw(st.integers(0, nbytes - 1))] ^= data.draw(st.integers(1, 255))
        assert checksum(payload) != before


def test_rows_that_change_places_change_the_checksum() -> None:
    payload = np.random.default_rng(3).integers(0, 256, 4 * 8 * FOLD, np.uint8)
    rows = payload.reshape(4, -1)
    assert checksum(np.ascontiguousarray(rows[[1, 0, 2, 3]]).reshape(-1)) != checksum(payload)


@given(st.binary(max_size=2 * HEADER.size))
@settings(deadline=None)
def test_no_bytes_but_a_header_are_a_header(data: bytes) -> None:
    with pytest.raises(LinkBroken):
        unpack_header(data, 0)


def test_lengths_are_refused_before_anything_is_read() -> None:
    packed = bytearray(pack_header(0, 0, b"x", None, 0))
    packed[8:12] = (HEAD_BYTES + 1).to_bytes(4, "little")
    with pytest.raises(LinkBroken, match="limits"):
        unpack_header(bytes(packed), 0)
    with pytest.raises(LinkBroken, match="limits"):
        pack_header(0, 0, bytes(HEAD_BYTES + 1), None, 0)


def stream_of(payload: Bytes) -> bytes:
    """What a link sends for a message, a block and a message."""
    near, far = socket.socketpair()
    with far:
        link = Link(near, InStream())
        link.send(Go(1))
        link.send(Block(1, 0, 2), payload)
        link.send(Drop(1, "q"))
        link.close()
        data = b""
        while more := far.recv(1 << 20):
            data += more
    return data


PAYLOAD = np.arange(3000, dtype=np.uint16).view(np.uint8)
STREAM = stream_of(PAYLOAD)


def received(data: bytes) -> list[Message]:
    """What a link makes of these bytes, until it breaks."""
    near, far = socket.socketpair()
    found: list[Message] = []
    link = Link(near, InStream())
    with far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(LinkBroken):
            while True:
                found.append(link.receive(room))
    link.close()
    return found


def test_what_was_sent_arrives() -> None:
    assert received(STREAM) == [Go(1), Block(1, 0, 2), Drop(1, "q")]


@given(cut=st.integers(0, len(STREAM) - 1))
@settings(max_examples=60, deadline=None)
def test_a_truncated_stream_gives_whole_frames_and_then_breaks(cut: int) -> None:
    found = received(STREAM[:cut])
    assert found == [Go(1), Block(1, 0, 2), Drop(1, "q")][: len(found)] and len(found) < 3


@given(at=st.integers(0, len(STREAM) - 1), flip=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_corrupt_stream_never_gives_another_message(at: int, flip: int) -> None:
    data = bytearray(STREAM)
    data[at] ^= flip
    found = received(bytes(data))
    assert found == [Go(1), Block(1, 0, 2), Drop(1, "q")][: len(found)] and len(found) < 3


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_noise_breaks_the_link(data: bytes) -> None:
    assert received(data) == []


def test_a_frame_that_comes_twice_breaks_the_link() -> None:
    head = HEADER.size + int.from_bytes(STREAM[8:12], "little")
    assert received(STREAM[:head] * 2) == [Go(1)]


# -- both carriages


@pytest.fixture(params=["shm", "tcp"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Link, Link]]:
    near, far = socket.socketpair()
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    if request.param == "tcp":
        pair = Link(near, InStream()), Link(far, InStream())
    else:
        number = os.memfd_create("test")
        os.ftruncate(number, Slots.bytes_for(PAYLOAD.nbytes))
        pair = Link(near, Slots(os.dup(number), PAYLOAD.nbytes)), Link(far, Slots(number, PAYLOAD.nbytes))
    yield pair
    for link in pair:
        link.close()


def test_a_slow_receiver_only_makes_the_sender_wait(ends: tuple[Link, Link]) -> None:
    """Many more payloads than the way holds: the sender blocks, and everything arrives, in order."""
    sender, receiver = ends
    count = 5 * COUNT

    def send() -> None:
        for index in range(count):
            sender.send(Block(0, 0, index), PAYLOAD + np.uint8(index))

    def listen() -> None:  # slots that are free again
        with pytest.raises(LinkBroken):
            sender.receive(room)

    threads = [threading.Thread(target=work) for work in (send, listen)]
    for thread in threads:
        thread.start()
    threads[0].join(0.2)
    assert threads[0].is_alive()  # the way is full
    for index in range(count):
        kept: list[Bytes] = []

        def keep(message: Message, nbytes: int, kept: list[Bytes] = kept) -> Bytes:
            kept.append(room(message, nbytes))
            return kept[0]

        assert receiver.receive(keep) == Block(0, 0, index)
        assert np.array_equal(kept[0], PAYLOAD + np.uint8(index))
    threads[0].join(10)
    assert not threads[0].is_alive() and sender.bytes_sent == count * PAYLOAD.nbytes
    receiver.close()
    threads[1].join(10)


def test_a_receiver_that_goes_away_wakes_a_waiting_sender(ends: tuple[Link, Link]) -> None:
    sender, receiver = ends
    broken: list[bool] = []

    def send() -> None:
        try:
            for index in range(10 * COUNT):
                sender.send(Block(0, 0, index), PAYLOAD)
        except LinkBroken:
            broken.append(True)

    def listen() -> None:
        try:
            sender.receive(room)
        except LinkBroken:
            sender.close()

    threads = [threading.Thread(target=work) for work in (send, listen)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    receiver.close()
    for thread in threads:
        thread.join(10)
    assert broken == [True]


def test_a_throttled_link_is_not_faster_than_it_says() -> None:
    near, far = socket.socketpair()
    link, other = Link(near, InStream(), rate=1e6), Link(far, InStream())
    began = time.perf_counter()
    for index in range(5):
        link.send(Block(0, 0, index), PAYLOAD)
    assert time.perf_counter() - began >= 5 * PAYLOAD.nbytes / 1e6
    link.close()
    other.close()

"""Who calls over TCP knows the secret or is sent away: noise, silence, wrong secrets, long frames harm nobody else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.cluster.calling import LENGTH, CallingDoor, Dock, DoorBroken, FarDoor, Tick, hear, say
from ridgeline.cluster.door import FRAME_BYTES, Greeting
from ridgeline.cluster.handshake import HELLO, MAGIC, NAME_BYTES, NONCE_BYTES, Stranger, answer, call, read_address
from ridgeline.cluster.link import Link
from ridgeline.cluster.messages import Go
from ridgeline.cluster.reception import NobodyCame, Reception
from ridgeline.cluster.wire import LinkBroken

SECRET, OTHER = bytes(range(32)), bytes(32)


@pytest.fixture
def reception() -> Iterator[Reception]:
    reception = Reception("127.0.0.1", SECRET, handshake_s=0.5)
    yield reception
    reception.close()


def waits_for(reception: Reception, refused: int) -> None:
    end = time.monotonic() + 30
    while reception.refused < refused:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_member_is_heard_by_its_name(reception: Reception) -> None:
    near = [call(reception.address, SECRET, name) for name in ("one", "two")]
    far = [reception.fetch(name, 10) for name in ("two", "one")]
    for end, other in zip(near, reversed(far), strict=True):
        end.sendall(b"hello")
        assert other.recv(5) == b"hello"
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and other.gettimeout() is None
    for one in near + far:
        one.close()


def test_a_wrong_secret_is_noticed_on_both_sides(reception: Reception) -> None:
    with pytest.raises(Stranger, match="does not know"):
        call(reception.address, OTHER, "one")
    waits_for(reception, 1)
    with pytest.raises(NobodyCame):
        reception.fetch("one", 0.0)


def test_what_is_called_must_know_the_secret_too() -> None:
    """Somebody else listens where the cluster was, and answers as long as it should."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pretend() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 10)
                connection.sendall(bytes(64))

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(Stranger, match="does not know"):
            call(server.getsockname(), SECRET, "one")
        thread.join()


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with pytest.raises(OSError):
        call(address, SECRET, "one")


def test_who_never_speaks_is_sent_away_and_keeps_nobody_waiting(reception: Reception) -> None:
    silent = [socket.create_connection(reception.address) for _ in range(8)]
    with call(reception.address, SECRET, "one"), reception.fetch("one", 10):
        pass
    waits_for(reception, 8)
    for one in silent:
        assert one.recv(1) == b""
        one.close()


def test_a_name_that_is_too_long_is_not_read(reception: Reception) -> None:
    with pytest.raises(Stranger, match="bytes"):
        call(reception.address, SECRET, "x" * (NAME_BYTES + 1))
    near, far = socket.socketpair()
    with near, far:
        near.sendall(HELLO.pack(MAGIC, bytes(NONCE_BYTES), NAME_BYTES + 1))
        with pytest.raises(Stranger, match="does not speak"):
            answer(far, SECRET)


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_noise_proves_nothing(data: bytes) -> None:
    near, far = socket.socketpair()
    with far:
        with near:
            near.sendall(data)
        with pytest.raises(Stranger):
            answer(far, SECRET)


def test_what_was_heard_before_proves_nothing() -> None:
    """A conversation that somebody has recorded, said again."""
    near, far = socket.socketpair()
    said = HELLO.pack(MAGIC, bytes(NONCE_BYTES), 3) + b"one" + bytes(32)
    for _ in range(2):
        near.sendall(said)
        with pytest.raises(Stranger, match="secret"):
            answer(far, SECRET)
    near.close()
    far.close()


def test_who_waits_is_told_when_nobody_will_come(reception: Reception) -> None:
    with pytest.raises(NobodyCame):
        reception.fetch("one", 60, lambda: False)
    threading.Timer(0.1, reception.close).start()
    with pytest.raises(NobodyCame):
        reception.fetch("one", 60)


def test_addresses() -> None:
    assert read_address("10.0.0.1:80") == ("10.0.0.1", 80) and read_address("[::1]:80") == ("::1", 80)
    for text in ("", "host", ":1", "host:", "host:0", "host:70000", "host:1x"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            read_address(text)


# -- doors


@pytest.mark.parametrize(
    "data",
    [
        LENGTH.pack(FRAME_BYTES + 1),
        LENGTH.pack(1 << 31),
        LENGTH.pack(5) + b"noise",
        LENGTH.pack(9),
        LENGTH.pack(2) + msgspec.msgpack.encode({})[:1],
    ],
)
def test_what_no_door_frame_is_breaks_the_door(data: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
        with pytest.raises(DoorBroken):
            hear(far, Greeting)


def test_a_door_is_for_its_messages_only() -> None:
    near, far = socket.socketpair()
    with near, far:
        with pytest.raises(DoorBroken, match="limit"):
            say(near, Greeting("x" * FRAME_BYTES, gives=True))
        say(near, Greeting("a", gives=True))
        with pytest.raises(DoorBroken, match="first where it is"):
            FarDoor(far)
        with pytest.raises(DoorBroken, match="gone"):
            FarDoor(far, timeout_s=0.05)  # it never says


@pytest.mark.parametrize("ahead_s", [0.0, 1234.5, -1234.5])
def test_another_machines_clock_is_found(ahead_s: float, reception: Reception) -> None:
    near, far = socket.socketpair()
    found: list[float] = []
    door = CallingDoor(near, SECRET, reception)
    thread = threading.Thread(target=lambda: found.append(door.announce()))
    thread.start()
    while isinstance(said := hear_any(far), Tick):
        say(far, Tick(time.perf_counter() + ahead_s))
    thread.join()
    assert said == Dock(reception.address)
    assert found[0] == pytest.approx(ahead_s, abs=5.0) and (found[0] == 0.0) == (ahead_s == 0.0)
    door.close()
    far.close()


def hear_any(connection: socket.socket) -> Tick | Dock:
    (length,) = LENGTH.unpack(connection.recv(LENGTH.size))
    message: Tick | Dock = msgspec.msgpack.decode(connection.recv(length), type=Tick | Dock)
    return message


def test_a_link_is_called_for(reception: Reception) -> None:
    """The giver calls, the taker is called; where nobody answers, the giver gets a link that is broken."""
    met: dict[str, Link] = {}
    pairs = [socket.socketpair() for _ in range(2)]
    receptions = (Reception("127.0.0.1", SECRET), reception)
    doors = [CallingDoor(pair[1], SECRET, one) for pair, one in zip(pairs, receptions, strict=True)]
    threads = []
    for door, who in zip(doors, ("giver", "taker"), strict=True):
        threads.append(threading.Thread(target=door.open, args=(lambda g, link, who=who: met.update({who + g.name: link}),)))  # fmt: skip  # noqa: E501
        threads[-1].start()
    say(pairs[0][0], Greeting("b", gives=True, ticket="t1", address=reception.address))
    say(pairs[1][0], Greeting("b", gives=False, ticket="t1"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()
    say(pairs[0][0], Greeting("c", gives=True, ticket="t2", address=nobody))
    end = time.monotonic() + 30
    while len(met) < 3:
        assert time.monotonic() < end
        time.sleep(0.005)
    met["giverb"].send(Go(7))
    assert met["takerb"].receive(nowhere) == Go(7)
    with pytest.raises(LinkBroken):
        met["giverc"].receive(nowhere)
    for link in met.values():
        link.close()
    for door, (ours, _), thread in zip(doors, pairs, threads, strict=True):
        door.close()
        thread.join()
        ours.close()


def nowhere(message: object, nbytes: int):
    raise LinkBroken("no payload is expected")

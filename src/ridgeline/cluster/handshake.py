"""Handshake: two that meet over TCP prove to each other that they know the cluster's secret, which never travels.

Owns the first bytes of every connection between machines. What follows is neither encrypted nor signed: it belongs on
a network whose members are trusted.
"""

# who calls                                    who is called
# MAGIC, nonce, length, name            --->
#                                       <---   nonce, proof ("called", both nonces, name)
# proof ("calls", both nonces, name)    --->   [only now the name means anything]

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import struct
import time

from ridgeline.kit.errors import RidgelineError

Address = tuple[str, int]

MAGIC = b"RLj1"
NONCE_BYTES = SECRET_BYTES = 32
PROOF_BYTES = hashlib.sha256().digest_size
NAME_BYTES = 200
HELLO = struct.Struct(f"<4s{NONCE_BYTES}sB")
HANDSHAKE_S = 30.0  # for all of it
IDLE_S, PROBES, DEAD_S = 5, 3, 20  # a machine that is gone is noticed: quiet this long, probes a second, all in all


class Stranger(RidgelineError):
    """Whoever is at the other end does not know the secret, or does not talk as one who does."""


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def call(address: Address, secret: bytes, name: str, timeout_s: float = HANDSHAKE_S) -> socket.socket:
    """A connection to who listens there, as `name`. OSError when nobody does, Stranger when it is somebody else."""
    until_s = time.monotonic() + timeout_s
    connection = socket.create_connection(address, timeout_s)
    try:
        nonce, said = secrets.token_bytes(NONCE_BYTES), name.encode()
        if not 0 < len(said) <= NAME_BYTES:
            raise Stranger(f"a name has 1 to {NAME_BYTES} bytes, not {len(said)}")
        _send(connection, HELLO.pack(MAGIC, nonce, len(said)) + said, until_s)
        answer = _read(connection, NONCE_BYTES + PROOF_BYTES, until_s)
        other, proof = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        if not hmac.compare_digest(proof, _proof(secret, b"called", nonce, other, said)):
            raise Stranger(f"who listens at {shown(address)} does not know this cluster's secret")
        _send(connection, _proof(secret, b"calls", nonce, other, said), until_s)
        prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def answer(connection: socket.socket, secret: bytes, timeout_s: float = HANDSHAKE_S) -> str:
    """The name of who has called. Stranger when it is nobody of this cluster, or too slow; nothing is closed."""
    until_s = time.monotonic() + timeout_s
    magic, other, length = HELLO.unpack(_read(connection, HELLO.size, until_s))
    if magic != MAGIC or not 0 < length <= NAME_BYTES:
        raise Stranger("who called does not speak as an engine does")
    said = _read(connection, length, until_s)
    nonce = secrets.token_bytes(NONCE_BYTES)
    _send(connection, nonce + _proof(secret, b"called", other, nonce, said), until_s)
    proof = _read(connection, PROOF_BYTES, until_s)
    if not hmac.compare_digest(proof, _proof(secret, b"calls", other, nonce, said)):
        raise Stranger("who called does not know this cluster's secret")
    prepare(connection)
    try:
        return said.decode()
    except UnicodeDecodeError:
        raise Stranger("who called has no readable name") from None


def prepare(connection: socket.socket) -> None:
    """For messages that wait for nothing, and so that a machine that has vanished is noticed."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_S), ("TCP_KEEPINTVL", IDLE_S), ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", DEAD_S * 1000),
    ):  # fmt: skip
        with contextlib.suppress(AttributeError, OSError):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def shown(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_address(text: str) -> Address:
    """ "10.0.0.1:4711", "[::1]:4711"; ValueError for what is none."""
    host, mark, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not mark or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{text!r} is no address; write HOST:PORT")
    return host, int(port)


def _proof(secret: bytes, side: bytes, calling: bytes, called: bytes, name: bytes) -> bytes:
    return hmac.digest(secret, b"%b %b%b%b" % (side, calling, called, name), "sha256")


def _send(connection: socket.socket, data: bytes, until_s: float) -> None:
    connection.settimeout(max(1e-3, until_s - time.monotonic()))
    try:
        connection.sendall(data)
    except OSError as error:
        raise Stranger(f"the other end went away before it had proved anything ({error})") from error


def _read(connection: socket.socket, count: int, until_s: float) -> bytes:
    data = b""
    while len(data) < count:
        connection.settimeout(max(1e-3, until_s - time.monotonic()))
        try:
            more = connection.recv(count - len(data))
        except TimeoutError as error:
            raise Stranger("the other end said too little in too long") from error
        except OSError as error:
            raise Stranger(f"the other end went away before it had proved anything ({error})") from error
        if not more:
            raise Stranger("the other end closed the connection before it had proved anything")
        data += more
    return data

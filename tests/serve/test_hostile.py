"""Hostile bytes, and callers without a key (SERVING §10): a 4xx in JSON, and the server lives."""

from __future__ import annotations

import json
import socket
import time

import pytest

from ridgeline.kit.errors import UserError
from ridgeline.llm import LLM
from ridgeline.serve.keys import Keys
from ridgeline.serve.routes import OFFERS
from ridgeline.serve.served import Limits

from .live import KEY, Live, live

CHAT = "/v1/chat/completions"


def refused(answer: bytes) -> tuple[int, dict]:
    """(status, error object) of a raw response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def post(body: bytes, *headers: str, path: str = CHAT) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture(autouse=True)
def lives(server: Live):
    """After every attack somebody else is answered."""
    yield
    assert server.chat(max_tokens=2).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[" * 100_000, b'{"model":' * 50_000, b"\xef\xbb\xbf{}", b'{"model":"\xff"}', b'{"model":"\\ud800"}',
        b'{"model": NaN}', b"[]", b"1", b"null", b'"x"', b'{"model":"tiny"} {}', b"{'model': 1}", b"\x00" * 1000,
        b'{"n":' + b"9" * 1_000_000 + b"}", b'{"temperature":1e999}', b'{"model":"tiny","messages":[{"role":"user"',
    ],
    ids=range(17),
)  # fmt: skip
def test_bodies_that_are_no_request(server: Live, body: bytes) -> None:
    reply = server("POST", CHAT, body)
    assert reply.status == 400 and reply.code in ("invalid_json", "invalid_value")
    assert len(reply.body) < 5000


def test_nul_is_text_and_of_two_keys_the_last_counts(server: Live) -> None:
    assert server.chat("a\0b").status == 200
    assert (
        server(
            "POST", CHAT, b'{"model":"other","model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":1}'
        ).status
        == 200
    )


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100_000 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (post(b"{}", "Content-Length: -5", "Content-Type: application/json"), 400),
        (post(b"{}", "Content-Length: 99999999999999999", "Content-Type: application/json"), 413),
        (post(b"{}", "Content-Length: 2", "Content-Length: 3", "Content-Type: application/json"), 400),
        (post(b"zz\r\n{}\r\n", "Transfer-Encoding: chunked", "Content-Type: application/json"), 400),
        (post(b"\x1f\x8b\x08", "Content-Encoding: gzip", "Content-Type: application/json"), 415),
        (post(b"a=b", "Content-Type: application/x-www-form-urlencoded"), 415),
        (post(b"{}", "Content-Type: text/plain"), 415),
    ],
)
def test_http_that_is_none(server: Live, data: bytes, status: int) -> None:
    got, error = refused(server.raw(data))
    assert got == status and error["message"] and error["type"] == "invalid_request_error"


def test_a_chunked_body_is_bounded_too(llm: LLM) -> None:
    with live(llm, limits=Limits(body_bytes=1000)) as small:
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        answer = small.raw(post(chunk + chunk, "Transfer-Encoding: chunked", "Content-Type: application/json"))
        assert refused(answer)[0] == 413
        assert small.chat("x" * 2000).status == 413


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}, {"X": "a" * 9000}])
def test_a_refusal_is_read_though_the_body_was_not(server: Live, keyed: Live, headers: dict[str, str]) -> None:
    """A connection that is closed with bytes unread is reset, and the answer with it."""
    body = b"[" + b"1," * (3 << 20) + b"1]"
    assert server("POST", "/detokenize", body, headers).status in (415, 431)
    assert keyed("POST", "/detokenize", body, {"Authorization": "Bearer no", **headers}).status in (401, 431)
    assert server("POST", "/nowhere", body).status == 404 and server("PUT", "/tokenize", body).status == 405


def test_slow_headers_and_slow_bodies_end(llm: LLM) -> None:
    with live(llm, limits=Limits(headers_s=0.3, body_s=0.3)) as hasty:
        began = time.monotonic()
        assert refused(hasty.raw(b"GET /health HTTP/1.1\r\nHost"))[0] == 408
        assert refused(hasty.raw(b""))[0] == 408
        assert refused(hasty.raw(post(b"{", "Content-Length: 50", "Content-Type: application/json")))[0] == 408
        assert time.monotonic() - began < 60
        assert hasty.chat(max_tokens=1).status == 200


def test_connections_are_bounded(llm: LLM) -> None:
    with live(llm, limits=Limits(connections=3)) as small:
        held = [socket.create_connection((small.host, small.port)) for _ in range(3)]
        time.sleep(0.2)
        assert refused(small.raw(b"GET /health HTTP/1.1\r\n\r\n"))[0] == 503
        for one in held:
            one.close()
        time.sleep(0.2)
        assert small("GET", "/health").status == 200


def test_pipelined_requests_are_answered_in_turn(server: Live) -> None:
    one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert server.raw(one * 3 + last).count(b"HTTP/1.1 200") == 4


# -- keys


@pytest.mark.parametrize("offer", [o for o in OFFERS if not o.is_open], ids=lambda o: o.path)
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": "Bearer " + "x" * 8000}],
)
def test_every_route_but_four_needs_a_key(keyed: Live, offer, headers: dict) -> None:
    keyless = Live(keyed.host, keyed.port, keyed.served, keyed.server)
    path = offer.path.replace("{id}", "tiny") + "?api_key=" + KEY
    reply = keyless(offer.method, path, {} if offer.takes else None, headers)
    assert reply.status == 401 and reply.code == "invalid_api_key" and reply.headers["www-authenticate"] == "Bearer"
    assert KEY not in reply.body.decode() and "x" * 50 not in reply.body.decode()


def test_a_key_opens_and_two_do_not(keyed: Live) -> None:
    assert keyed("GET", "/v1/models").status == 200
    assert keyed("GET", "/health", headers={"Authorization": ""}).status == 200
    twice = f"Authorization: Bearer {KEY}"
    answer = keyed.raw(
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + f"{twice}\r\n{twice}\r\n\r\n".encode()
    )
    assert refused(answer)[0] == 401
    assert keyed("GET", "/health?detail=1").json["blocks"] > 0
    keyless = Live(keyed.host, keyed.port, keyed.served, keyed.server)
    assert keyless("GET", "/health?detail=1").json == {"status": "ok"}


def test_a_file_of_keys(tmp_path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nsk-1 alice\n\nsk-2\n")
    keys = Keys.from_file(path)
    assert (keys.tenant([b"Bearer sk-1"]), keys.tenant([b"bearer sk-2"])) == ("alice", "key-4")
    for text, words in (("a b c", "3 words"), ("# none\n", "no key")):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            Keys.from_file(path)
    with pytest.raises(UserError, match="cannot read"):
        Keys.from_file(tmp_path / "absent")


def test_nothing_is_fetched_or_opened_because_a_request_said_so(server: Live) -> None:
    for name in ("../../etc/passwd", "http://169.254.169.254/", "file:///etc/passwd", "random:llama-3-8b"):
        assert server.chat(model=name).code == "model_not_found"
        assert server("GET", f"/v1/models/{name}").status == 404


def test_pages_of_named_origins_may_ask(llm: LLM) -> None:
    page, stranger = "https://page.example", "https://other.example"
    with live(llm, keys=(KEY,), limits=Limits(cors=(page,))) as server:
        asked = {"Origin": page, "Access-Control-Request-Method": "POST", "Authorization": ""}
        preflight = server("OPTIONS", "/v1/chat/completions", headers=asked)
        assert preflight.status == 204 and preflight.headers["access-control-allow-origin"] == page
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert server("OPTIONS", "/v1/models", headers={**asked, "Origin": stranger}).status == 401
        assert server("GET", "/v1/models", headers={"Origin": page}).headers["access-control-allow-origin"] == page
        for headers in ({"Origin": stranger}, {}):
            assert "access-control-allow-origin" not in server("GET", "/v1/models", headers=headers).headers

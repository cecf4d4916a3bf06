"""A server's life: leaving, deadlines, a full queue, draining, an engine that stops or dies, what is counted."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ridgeline
from ridgeline.llm import LLM
from ridgeline.perf.rules import CAUSES
from ridgeline.serve.admission import Queue
from ridgeline.serve.protocol import SILENCE
from ridgeline.serve.refusal import Refusal
from ridgeline.serve.served import Limits
from ridgeline.state.messages import Pulse

from .live import Live, Reply, live

LONG = {"max_tokens": 900, "ignore_eos": True}


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def begin_stream(server: Live, **fields: object) -> socket.socket:
    """A connection on which a long answer is being streamed."""
    connection = send((server.host, server.port), {"model": "tiny", "prompt": "hi", "stream": True, **LONG, **fields})
    assert b"200 OK" in connection.recv(64)
    return connection


def to_its_end(stream: socket.socket) -> bytes:
    """What else comes of a streamed answer, which may end in the middle; closes the connection."""
    received = b""
    with stream:
        while not received.endswith(b"0\r\n\r\n") and (part := stream.recv(1 << 16)):
            received += part
    return received


def send(address: tuple[str, int], fields: dict[str, object], *headers: str) -> socket.socket:
    """A connection on which a completion was asked for."""
    body = json.dumps(fields).encode()
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    connection = socket.create_connection(address, 60)
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return connection


def is_quiet(llm: LLM) -> bool:
    """The engine said, just now, that nothing runs or waits and no block is held."""
    asked = time.perf_counter()
    llm.ask_pulse()
    until(lambda: llm.pulse is not None and llm.pulse.at_s >= asked)
    pulse = llm.pulse or Pulse(0.0)
    return not (pulse.running or pulse.waiting or pulse.blocks_held)


def test_leaving_gives_the_blocks_back(server: Live, llm: LLM) -> None:
    for connection in [begin_stream(server, n=3) for _ in range(4)]:
        connection.close()
    until(lambda: is_quiet(llm) and not server.served.jobs)
    assert server.served.queue.inside == 0 and server.served.queue.held_bytes == 0


def test_leaving_an_answer_that_is_not_streamed_cancels_too(server: Live, llm: LLM) -> None:
    connection = begin_stream(server)
    connection.close()
    other = send((server.host, server.port), {"model": "tiny", "prompt": "hi", **LONG, "n": 16})
    until(lambda: bool(server.served.jobs))
    other.close()
    until(lambda: is_quiet(llm) and not server.served.jobs)


def test_a_missed_deadline_is_504_or_an_error_event(server: Live, llm: LLM) -> None:
    late = server(
        "POST", "/v1/completions", {"model": "tiny", "prompt": "hi", **LONG, "n": 16}, {"x-deadline-ms": "40"}
    )
    assert late.status == 504 and late.code == "deadline_exceeded" and late.headers["x-should-retry"] == "false"
    body = {"model": "tiny", "prompt": "hi", "stream": True, **LONG, "n": 16}
    events = server("POST", "/v1/completions", body, {"x-deadline-ms": "150"})
    assert events.status == 504 or events.events[-1]["error"]["code"] == "deadline_exceeded"
    until(lambda: is_quiet(llm))
    in_time = server("POST", "/v1/completions", {"model": "tiny", "prompt": "hi"}, {"x-ttft-deadline-ms": "60000"})
    assert in_time.status == 200
    for wrong in ("", "-1", "soon", "0", "9" * 30):
        assert (
            server("POST", "/v1/completions", {"model": "tiny", "prompt": "hi"}, {"x-deadline-ms": wrong}).status == 400
        )


def test_a_full_queue_is_429_with_a_time_to_come_back(llm: LLM) -> None:
    with live(llm, limits=Limits(queue_requests=2)) as small:
        reply = small.chat(n=3)
        assert reply.status == 429 and reply.code == "queue_full" and reply.json["error"]["type"] == "rate_limit_error"
        assert 1 <= int(reply.headers["retry-after"]) <= 120 and int(reply.headers["retry-after-ms"]) >= 1000
        assert small.chat(n=2).status == 200


def test_the_predicted_wait_is_how_long_answers_take() -> None:
    pulse = Pulse(0.0, waiting=1, running=2)
    queue = Queue(100, 5.0, 8, lambda: pulse)
    queue.enter(10, 0)  # eight wait; nothing is known yet
    queue.ended(2.0)  # so long an answer has its slot; two run at a time
    assert queue.slots == 2 and queue.predicted_s() == 9.0 and not queue.has_room
    with pytest.raises(Refusal, match="queue-wait") as refusal:
        queue.enter(1, 0)
    assert refusal.value.headers["Retry-After"] == "9"
    queue.leave(8, 0)
    with pytest.raises(Refusal, match="deadline"):
        queue.enter(2, 0, deadline_s=1.5)
    queue.enter(2, 0)
    queue.leave(4, 0)
    assert queue.inside == 0 and queue.predicted_s() == 0.0


def test_draining_finishes_what_was_accepted(llm: LLM) -> None:
    with live(llm) as ending:
        replies: list[Reply] = []
        thread = threading.Thread(target=lambda: replies.append(ending.complete("hi", stream=True, **LONG)))
        thread.start()
        until(lambda: bool(ending.served.jobs))
        ending.server.drain()
        refused = (
            [ending.chat(), ending("GET", "/health/ready"), ending("GET", "/health")] if ending.served.jobs else []
        )
        thread.join(60)
        assert replies[0].events[-1] == "[DONE]"
    if refused:
        assert refused[0].status == 503 and refused[0].code == "draining" and refused[0].headers["retry-after"]
        assert refused[1].json == {"status": "draining"} and refused[2].status == 200
    assert ending.server.exit_code == 0


def test_what_is_left_after_the_drain_time_is_told(llm: LLM) -> None:
    with live(llm, limits=Limits(drain_s=0.0)) as ending:
        replies: list[Reply] = []
        body = {"n": 16, "stream": True, **LONG}
        thread = threading.Thread(target=lambda: replies.append(ending.complete("hi", **body)))
        thread.start()
        until(lambda: bool(ending.served.jobs))
        ending.server.drain()
        thread.join(60)
    last = replies[0].events[-1] if replies[0].status == 200 else replies[0].json
    assert last == "[DONE]" or last["error"]["code"] == "draining"
    until(lambda: is_quiet(llm))


def test_health_follows_the_engine(tiny: str) -> None:
    with LLM(tiny, threads=1, kv_bytes=8 << 20) as own, live(own, limits=Limits(stalled_s=1.5, restarts=0)) as server:
        until(lambda: server("GET", "/health").json == {"status": "ok"})
        assert server("GET", "/health/ready").status == server("GET", "/ping").status == 200
        pid = own._client.pid
        # again and again: whoever else continues processes on this machine must not make it pass for alive
        until(lambda: os.kill(pid, signal.SIGSTOP) is None and server("GET", "/health").status == 503)
        assert server("GET", "/health").json == {"status": "stalled"} and server("GET", "/health/live").status == 200
        os.kill(pid, signal.SIGCONT)
        until(lambda: server("GET", "/health").status == 200)
        stream = begin_stream(server, n=16)
        os.kill(pid, signal.SIGKILL)
        received = to_its_end(stream)
        assert b'"code":"engine_down"' in received and b"[DONE]" not in received
        assert server("GET", "/health/live").json == {"status": "engine_down"}
        reply = server.chat()
        assert reply.status == 503 and reply.code == "engine_down" and reply.headers["retry-after"]


def test_a_killed_engine_is_started_again_but_not_for_ever(tiny: str) -> None:
    with LLM(tiny, threads=1, kv_bytes=8 << 20) as own, live(own, limits=Limits(restarts=1)) as server:
        before = server.chat().json["choices"]
        stream = begin_stream(server, n=16)
        first = own._client.pid
        os.kill(first, signal.SIGKILL)
        received = to_its_end(stream)
        assert b'"code":"engine_down"' in received and b"[DONE]" not in received
        until(lambda: server("GET", "/health").json == {"status": "ok"})
        assert own._client.pid != first and server.chat().json["choices"] == before
        assert server("GET", "/why").status == server("GET", "/metrics").status == 200
        assert is_quiet(own)
        os.kill(own._client.pid, signal.SIGKILL)
        until(lambda: server("GET", "/health/live").json == {"status": "engine_down"})
        time.sleep(1.0)
        reply = server.chat()
        assert (
            reply.status == 503 and reply.code == "engine_down" and server.server.door.lineup.revivals[0].revived == 1
        )


def test_a_reader_that_stands_still_is_cancelled(llm: LLM) -> None:
    with live(llm, limits=Limits(stall_s=0.5)) as server:
        readers = []
        for _ in range(4):  # small buffers, and nobody reads
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect((server.host, server.port))
            body = json.dumps({"model": "tiny", "prompt": "hi", "stream": True, **LONG, "n": 16, "logprobs": 20})
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            readers.append(connection)
        until(lambda: len(server.served.jobs) > 0)
        assert server.chat(max_tokens=4).status == 200  # somebody else is served meanwhile
        until(lambda: not server.served.jobs and is_quiet(llm))
        for connection in readers:
            connection.close()


def test_half_closed_and_silent_connections_hold_nothing(server: Live, llm: LLM) -> None:
    streams = [begin_stream(server, n=4) for _ in range(3)]
    for connection in streams:
        connection.shutdown(socket.SHUT_WR)  # says that it will never ask again, and reads no more
    silent = [socket.create_connection((server.host, server.port)) for _ in range(20)]
    until(lambda: not server.served.jobs and is_quiet(llm))
    assert server.chat(max_tokens=2).status == 200
    for connection in (*streams, *silent):
        connection.close()


def test_the_system_looks_for_peers_that_vanished(server: Live) -> None:
    """What a peer that vanished without a word does to us, only a network can show; here: that the system is asked to
    notice it, on the very sockets that were accepted."""
    with socket.create_connection((server.host, server.port)) as connection:
        here = connection.getsockname()
        accepted = server.server.server_state.connections
        ours: list[socket.socket] = []

        def is_accepted() -> bool:
            transports = [one.transport for one in tuple(accepted)]
            ours.extend(one.get_extra_info("socket") for one in transports if one.get_extra_info("peername") == here)
            return bool(ours)

        until(is_accepted)
        assert ours[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert ours[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1  # no token waits for an acknowledgement
        found = {name: ours[0].getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name, _ in SILENCE}
    assert found == dict(SILENCE)
    assert found["TCP_KEEPIDLE"] + found["TCP_KEEPCNT"] * found["TCP_KEEPINTVL"] <= 120  # seconds until it is noticed


def test_metrics_add_up(llm: LLM) -> None:
    with live(llm) as fresh:
        fresh.chat(n=2)
        fresh.complete("hi", max_tokens=5, stream=True)
        fresh.chat(n=99)
        until(lambda: llm.pulse is not None)
        text = fresh("GET", "/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in text.body.decode().splitlines() if not line.startswith("#"))
    number = {name.removeprefix("ridgeline_"): float(value) for name, value in lines.items()}
    assert number["generation_tokens_total"] == number["request_generation_tokens_sum"] == 21
    assert number["prompt_tokens_total"] == number["request_prompt_tokens_sum"] == number["prefix_cache_queries_total"]
    ended = sum(value for name, value in number.items() if name.startswith("request_success_total{"))
    assert ended == number["time_to_first_token_seconds_count"] == number["e2e_request_latency_seconds_count"] == 3
    assert number['rejected_total{code="invalid_value"}'] == 1
    blocks = [value for name, value in number.items() if name.startswith("blocks{")]
    assert len(blocks) == 3 and sum(blocks) > 0 and 0 <= number["kv_cache_usage_perc"] <= 1
    assert not re.search("alice|sk-", text.body.decode())
    parts = [number[f"request_{name}_time_seconds_sum"] for name in ("prefill", "decode", "inference", "queue")]
    assert parts[0] + parts[1] == pytest.approx(parts[2]) and parts[3] >= 0
    assert number["request_inference_time_seconds_count"] == number["request_queue_time_seconds_count"] == 3
    assert number["request_inference_time_seconds_sum"] <= number["e2e_request_latency_seconds_sum"]


def test_metrics_hold_the_ledger_and_vllm_names(tiny: str) -> None:
    with LLM(tiny, threads=1, kv_bytes=8 << 20, place="auto") as own, live(own, is_aliasing=True) as server:
        server.complete("what is shared by both of them", max_tokens=50)
        server.complete("what is shared by both of them", max_tokens=50)
        asyncio.run(server.served.metrics.windows.fresh(0.0))
        totals = server.served.metrics.windows.totals
        text = server("GET", "/metrics").body.decode()
        verdict = server("GET", "/why").json  # of the pages that were turned, too
        account = server.complete("hi", max_tokens=4, account=True).json["account"]
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    steps = [float(value) for name, value in lines.items() if name.startswith("ridgeline_step_time_seconds_total{")]
    bound = [float(value) for name, value in lines.items() if name.startswith("ridgeline_bound_seconds_total{")]
    assert sum(steps) == pytest.approx(totals.engine_s) and sum(steps) > 0
    assert sum(bound) == pytest.approx(totals.engine_s + totals.idle_s)
    assert any("energy_joules_total{" in name and 'source="estimate"' in name for name in lines)
    assert lines['vllm:generation_tokens_total{model_name="tiny"}'] == lines["ridgeline_generation_tokens_total"]
    assert 'vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="tiny"}' in lines
    assert verdict["measured"]["steps"] >= 90 and account["choices"][0]["wall_ns"]
    assert float(lines["ridgeline_prefix_cache_hits_total"]) > 0 and "prefix_lost" in text
    assert verdict["choices"]["switches"] == len(verdict["choices"]["log"])
    assert lines['ridgeline_place_way{way="serial"}'] == "0.0" and "ridgeline_place_switches_total" in lines


@pytest.mark.parametrize("signals", [1, 2])
def test_the_verb_serves_and_ends(tiny: str, home: Path, signals: int) -> None:
    source = str(Path(ridgeline.__file__).parents[1])
    command = [sys.executable, "-m", "ridgeline.cli.main", "serve", tiny, "--name", "tiny", "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": source, "RIDGELINE_HOME": str(home)}
    options = ["--threads", "1", "--kv-bytes", "8M", "--api-key", "sk-x"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        url = re.search(r'"url":"http://([\d.]+):(\d+)"', process.stdout.readline())
        connection = None
        if signals == 2:  # something to wait for
            fields = {"model": "tiny", "prompt": "hi", "stream": True, **LONG, "n": 16}
            connection = send((url[1], int(url[2])), fields, "Authorization: Bearer sk-x")
            assert b"200 OK" in connection.recv(64)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        _, stderr = process.communicate(timeout=60)
        if connection is not None:
            connection.close()
    assert process.returncode in ((0,) if signals == 1 else (0, 1)), stderr
    assert "visible with ps" in stderr and "Traceback" not in stderr


def test_why_gives_the_verdict_of_the_run(server: Live) -> None:
    server.chat(n=4)
    verdict = server("GET", "/why").json
    assert verdict["words"] and verdict["cause"] in CAUSES

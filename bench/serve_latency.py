"""What the server adds to every token: from the moment the script says it to the moment it is in the caller's socket.

python bench/serve_latency.py --streams 1,16,64
A scripted engine (150 ms, then 10 ms a token) behind the real server, in a process of its own that notes when each
token was due; callers in another, with nothing but sockets. `arrived`: the kernel's stamp on the bytes; `read`: when
the caller had them. `null`: the same times told by a bare loop that writes ready bytes: what machine and caller add
by themselves. Every stream asks again when an answer ends, for lengths that differ. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import random
import re
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch

FIRST_S, NEXT_S, MODEL = 0.150, 0.010, "smollm2-135m"
STAMPED = getattr(socket, "SO_TIMESTAMPNS", 35)  # of Linux
FRAME = re.compile(rb'"index":0,"text":"[^"]')
Times = dict[int, list[tuple[float, float]]]  # of each answer, token by token: (arrived, read)


# -- the server's process


def serve() -> None:
    """A real server on a script; tells its port, and in the end when every token was due, by the prompt's first id."""
    import queue

    from ridgeline.serve.door import Door
    from ridgeline.serve.keys import Keys
    from ridgeline.serve.scripted import Script, ScriptedEngine
    from ridgeline.serve.served import Served
    from ridgeline.serve.server import Server, listen

    due: dict[int, list[float]] = {}
    engine = ScriptedEngine.of(MODEL, Script(FIRST_S, NEXT_S, 64))
    told = engine.submit_to

    def noting(request: Any, deliver: Any, note: Any = None) -> None:
        times = due.setdefault(request.prompt[0], [])

        def deliver_noted(event: Any) -> None:
            times.append(event.at_s)
            deliver(event)

        told(request, deliver_noted, note)

    engine.submit_to = noting  # type: ignore[method-assign]
    served, listening, ready = Served(MODEL, engine), listen("127.0.0.1", 0), queue.SimpleQueue()
    server = Server(Door([served], Keys()), listening, ready.put)

    def until_told() -> None:
        print(int(ready.get().rpartition(":")[2]), flush=True)
        sys.stdin.readline()
        server.drain()

    threading.Thread(target=until_told).start()
    sys.setswitchinterval(0.0005)  # this and the next two as `ridgeline serve` does
    gc.collect()
    gc.freeze()
    server.run()
    print(json.dumps([due, time.process_time()]), flush=True)
    served.close()
    engine.close()


def serve_null() -> None:
    """The same script by a loop that knows its answer beforehand."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listening.getsockname()[1], flush=True)
    chooser, number = selectors.SelectSelector(), 0  # its clock is finer than that of epoll
    due_at: list[tuple[float, int, Any, int, int]] = []
    due: dict[int, list[float]] = {}
    chooser.register(listening, selectors.EVENT_READ)
    chooser.register(sys.stdin, selectors.EVENT_READ)
    body = b'data: {"id":"cmpl-000000000000000000000000","choices":[{"index":0,"text":" word","logprobs":null}]}'
    frame = b"%x\r\n%b\n\n\r\n" % (len(body) + 130, body + b" " * 128)
    while True:
        wait_s = max(0.0, due_at[0][0] - time.perf_counter()) if due_at else None
        for key, _ in chooser.select(wait_s):
            if key.fileobj is sys.stdin:
                print(json.dumps([due, time.process_time()]), flush=True)
                return
            if key.fileobj is listening:
                chooser.register(listening.accept()[0], selectors.EVENT_READ)
                continue
            wire: Any = key.fileobj
            asked = wire.recv(1 << 16)
            if not asked:
                chooser.unregister(wire)
                wire.close()
                continue
            ask = json.loads(asked.partition(b"\r\n\r\n")[2])
            wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            number += 1
            heapq.heappush(due_at, (time.perf_counter() + FIRST_S, number, wire, ask["prompt"][0], ask["max_tokens"]))
        while due_at and due_at[0][0] <= time.perf_counter():
            at_s, which, wire, name, left = heapq.heappop(due_at)
            due.setdefault(name, []).append(at_s)
            wire.send(frame)
            if left > 1:
                heapq.heappush(due_at, (at_s + NEXT_S, which, wire, name, left - 1))
            else:
                wire.send(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


# -- the callers' process


def ask(port: int, name: int, tokens: int) -> socket.socket:
    body = {"model": MODEL, "prompt": [name, 5, 6], "max_tokens": tokens, "stream": True, "ignore_eos": True}
    data = json.dumps(body | {"temperature": 0}).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.SOL_SOCKET, STAMPED, 1)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def stream(port: int, lengths: list[Iterator[tuple[int, int]]]) -> Times:
    """lengths: of every stream, one answer after the other: (name, tokens)."""
    chooser, times, since = selectors.DefaultSelector(), {}, time.time() - time.perf_counter()

    def begin(answers: Iterator[tuple[int, int]]) -> None:
        following = next(answers, None)
        if following is not None:
            name, tokens = following
            times[name] = []
            chooser.register(ask(port, name, tokens), selectors.EVENT_READ, (name, answers))

    for answers in lengths:
        begin(answers)
    while chooser.get_map():
        for key, _ in chooser.select():
            wire: Any = key.fileobj
            data, stamps, _, _ = wire.recvmsg(1 << 16, 64)
            read_s = time.perf_counter()
            name, answers = key.data
            arrived_s = read_s
            if stamps:
                whole, part = struct.unpack("qq", stamps[0][2][:16])
                arrived_s = whole + 1e-9 * part - since
            times[name] += [(arrived_s, read_s)] * len(FRAME.findall(data))
            if b"[DONE]" in data or not data:
                chooser.unregister(wire)
                wire.close()
                begin(answers)
    return times


def measured(kind: str, streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--role", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    said: Any = process.stdout
    port, draw = int(said.readline()), random.Random(streams)
    stream(port, [iter([(999, 8)])])
    answers = [
        iter([(1000 + rounds * one + turn, draw.randrange(tokens // 2, 3 * tokens // 2)) for turn in range(rounds)])
        for one in range(streams)
    ]
    watch, began_s = CpuWatch(), time.process_time()
    times = stream(port, answers)
    caller_s, foreign = time.process_time() - began_s, watch.foreign_cpu_share()
    told, _ = process.communicate("end\n")
    named, server_s = json.loads(told)
    due = {int(name): at_s for name, at_s in named.items()}
    arrived, read, torn = [], [], 0
    for name, came in times.items():
        torn += len(came) != len(due[name])
        arrived += [1e3 * (one[0] - at_s) for one, at_s in zip(came, due[name], strict=False)]
        read += [1e3 * (one[1] - at_s) for one, at_s in zip(came, due[name], strict=False)]
    shares = {"arrived_ms": _shares(arrived), "read_ms": _shares(read)}
    return {"tokens": len(read), "torn": torn, **shares, "caller_cpu_s": caller_s, "server_cpu_s": server_s,
            "foreign_cpu_share": foreign}  # fmt: skip


def _shares(values: list[float]) -> dict[str, float]:
    values.sort()
    return {f"p{share}": round(values[int(share / 100 * (len(values) - 1))], 3) for share in (50, 90, 99, 100)}


ROLES: dict[str, Callable[[], None]] = {"server": serve, "null": serve_null}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", choices=ROLES, help="of a process that this one starts")
    asked = parser.parse_args()
    if asked.role is not None:
        ROLES[asked.role]()
        return
    found = []
    for streams in map(int, asked.streams.split(",")):
        for name in ROLES:
            one = measured(name, streams, asked.tokens, asked.rounds)
            found.append({"kind": name, "streams": streams, **one})
            told = ", ".join(f"{what} {one[what + '_ms']}" for what in ("arrived", "read"))
            print(f"{streams} streams, {name}: {told}", flush=True)
    document = {"schema": "ridgeline.serve_latency/1", "first_s": FIRST_S, "next_s": NEXT_S, "found": found}
    print(json.dumps(document | {"machine": msgspec.to_builtins(fingerprint())}))


if __name__ == "__main__":
    main()

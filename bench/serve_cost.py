"""What the server costs beside its engine: CPU seconds a token of both processes, with many streams open at a time.

python bench/serve_cost.py --model smollm2-135m --streams 64 --tokens 128
Prints a line for people, then one JSON document. CPU seconds, not wall time: a busy neighbour changes them little.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def engine_of(pid: int) -> int:
    """The worker process that a server has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in children if b"ridgeline.worker" in Path(f"/proc/{child}/cmdline").read_bytes())


def stream_all(port: int, model: str, streams: int, tokens: int) -> tuple[int, float]:
    """(frames with text received, seconds) of so many streams at a time, read to their ends."""
    chooser = selectors.DefaultSelector()
    began = time.perf_counter()
    for number in range(streams):
        body = {"model": model, "prompt": f"Story {number}: once upon a time", "max_tokens": tokens, "stream": True}
        data = json.dumps(body | {"ignore_eos": True, "temperature": 0}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head.encode() + data)
        chooser.register(connection, selectors.EVENT_READ)
    frames = 0
    while chooser.get_map():
        for key, _ in chooser.select():
            part = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
            frames += part.count(b'"text":"') - part.count(b'"text":""')
            if not part:
                chooser.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
    return frames, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    asked = parser.parse_args()
    command = [sys.executable, "-m", "ridgeline.cli.main", "serve", asked.model, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        found = re.search(r":(\d+)\"", server.stdout.readline())  # type: ignore[union-attr]
        port = int(found[1])  # type: ignore[index]
        stream_all(port, asked.model, 4, 16)
        engine = engine_of(server.pid)
        before, watch = (cpu_s(server.pid), cpu_s(engine)), CpuWatch()
        frames, seconds = stream_all(port, asked.model, asked.streams, asked.tokens)
        after, foreign = (cpu_s(server.pid), cpu_s(engine)), watch.foreign_cpu_share()
        server.terminate()
    tokens = asked.streams * asked.tokens
    ours, engines = (end - begin for begin, end in zip(before, after, strict=True))
    print(
        f"{asked.streams} streams, {tokens} tokens in {seconds:.1f} s: server {1e6 * ours / tokens:.0f} us a token, "
        f"engine {1e6 * engines / tokens:.0f} us a token, share {100 * ours / engines:.1f} %"
    )
    document = {
        "schema": "ridgeline.serve_cost/1", "streams": asked.streams, "tokens": tokens, "frames": frames,
        "seconds": seconds, "server_cpu_s": ours, "engine_cpu_s": engines, "share": ours / engines,
        "foreign_cpu_share": foreign, "machine": fingerprint(),
    }  # fmt: skip
    print(msgspec.json.encode(document).decode())


if __name__ == "__main__":
    main()

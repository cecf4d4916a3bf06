"""Soak: mixed requests of two tenants with canaries, some of them cancelled, refused or late; memory before and after.

python bench/serve_soak.py --model MODEL --requests 10000
Resident memory of the server and of its engine after a tenth of the requests and after all; whether any answer held the
other tenant's canary. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.run.machine import fingerprint

CANARIES = {"alice": "ALICE-7f3b-canary", "bob": "BOB-91ce-canary"}
SHARED = "You are a careful assistant. Answer in one sentence, and say when you do not know. "
CALLERS = 8


def resident_bytes(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def engine_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in children if b"ridgeline.worker" in Path(f"/proc/{child}/cmdline").read_bytes())


class Caller:
    """One thread's worth of everything that callers do."""

    def __init__(self, port: int, seed: int) -> None:
        self.port, self.draw = port, random.Random(seed)
        self.kinds: Counter[str] = Counter()
        self.leaks: list[str] = []

    def one(self) -> None:
        tenant = self.draw.choice(sorted(CANARIES))
        other = next(canary for name, canary in CANARIES.items() if name != tenant)
        text = f"{SHARED if self.draw.random() < 0.5 else ''}{CANARIES[tenant]} {self.draw.randrange(10**6)}"
        kind = self.draw.choice(("whole", "stream", "chat", "echo", "leaves", "late", "wrong", "many"))
        body: dict[str, Any] = {"model": "m", "max_tokens": self.draw.randrange(1, 24), "ignore_eos": True}
        body |= {"messages": [{"role": "user", "content": text}]} if kind == "chat" else {"prompt": text}
        headers = {"Authorization": f"Bearer sk-{tenant}", "Content-Type": "application/json"}
        body |= {"stream": kind in ("stream", "leaves")} | ({"echo": True} if kind == "echo" else {})
        body |= {"n": 3} if kind == "many" else {"max_tokens": -1} if kind == "wrong" else {}
        if kind == "late":
            headers["x-deadline-ms"] = str(self.draw.randrange(1, 30))
        if kind == "leaves":
            self._leave(body, headers)
            return
        route = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", route, json.dumps(body), headers)
            reply = connection.getresponse()
            data = reply.read()
            self.kinds[f"{kind} {reply.status}"] += 1
            if other.encode() in data:
                self.leaks.append(f"{kind}: {data[:200]!r}")
            if kind == "echo" and reply.status == 200 and CANARIES[tenant].encode() not in data:
                self.leaks.append(f"{kind} lost its own: {data[:200]!r}")
        except (OSError, HTTPException) as error:
            self.kinds[f"{kind} {type(error).__name__}"] += 1
        finally:
            connection.close()

    def _leave(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
            )
            time.sleep(self.draw.random() * 0.05)
        self.kinds["left"] += 1


def send(callers: list[Caller], count: int) -> None:
    left = iter(range(count))
    lock = threading.Lock()

    def work(caller: Caller) -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            caller.one()

    threads = [threading.Thread(target=work, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text("".join(f"sk-{name} {name}\n" for name in CANARIES))
        command = [sys.executable, "-m", "ridgeline.cli.main", "serve", asked.model, "--name", "m", "--port", "0"]
        options = ["--api-key-file", str(keys), "--kv-bytes", "16M", "--max-sequences", "16", "--json"]
        with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as server:
            port = int(re.search(r":(\d+)\"", server.stdout.readline())[1])  # type: ignore[index,union-attr]
            pids = {"server": server.pid, "engine": engine_of(server.pid)}
            callers = [Caller(port, seed) for seed in range(CALLERS)]
            seen: list[dict[str, int]] = []
            began_s = time.perf_counter()
            for tenth in range(10):
                send(callers, asked.requests // 10)
                time.sleep(1.0)
                seen.append({name: resident_bytes(pid) for name, pid in pids.items()})
                told = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in seen[-1].items())
                print(
                    f"{(tenth + 1) * asked.requests // 10}: {told}, {time.perf_counter() - began_s:.0f} s", flush=True
                )
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/health?detail=1", headers={"Authorization": "Bearer sk-alice"})
            health = json.loads(connection.getresponse().read())
            server.terminate()
    kinds: Counter[str] = sum((caller.kinds for caller in callers), Counter())
    leaks = [leak for caller in callers for leak in caller.leaks]
    growth = {name: seen[-1][name] / seen[0][name] - 1 for name in pids}
    document = {
        "schema": "ridgeline.serve_soak/1", "requests": asked.requests, "resident_bytes": seen, "growth": growth,
        "kinds": dict(sorted(kinds.items())), "leaks": leaks, "blocks_held_after": health.get("blocks_held"),
        "seconds": time.perf_counter() - began_s, "machine": msgspec.to_builtins(fingerprint()),
    }  # fmt: skip
    print(json.dumps({key: document[key] for key in ("growth", "kinds", "leaks", "blocks_held_after")}, indent=1))
    print(json.dumps(document))


if __name__ == "__main__":
    main()

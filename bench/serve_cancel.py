"""Cancellation: requests whose callers leave at random moments, beside streams that must not notice.

python bench/serve_cancel.py --requests 1000 --model smollm2-135m
For each: milliseconds from the caller's leaving (its socket closed) to the engine's having freed its blocks, less the
step that was under way. Control streams must say bit for bit what they say alone. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import socket
import threading
import time
from collections import Counter
from typing import Any

import msgspec

from ridgeline.llm import LLM
from ridgeline.run.machine import fingerprint
from ridgeline.run.noise import CpuWatch
from ridgeline.serve.door import Door
from ridgeline.serve.keys import Keys
from ridgeline.serve.served import Served
from ridgeline.serve.server import Server, listen

SLOTS, CALLERS, OUTPUT = 6, 16, 48


class Watched:
    """A backend that notes when the engine told of an end. Requests are known by their prompts."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.ended: dict[tuple[int, ...], Any] = {}
        self.begun: set[tuple[int, ...]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def submit_to(self, request: Any, deliver: Any, note: Any = None) -> None:
        def noting(event: Any) -> None:
            if getattr(event, "tokens", ()):
                self.begun.add(request.prompt)
            if getattr(event, "finish", None) is not None:
                self.ended[request.prompt] = event
            deliver(event)

        self._llm.submit_to(request, noting, note)


def ask(port: int, prompt: list[int], tokens: int) -> socket.socket:
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True, "temperature": 0}
    data = json.dumps(body | {"return_token_ids": True}).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    )
    return connection


def read_all(connection: socket.socket) -> list[int]:
    """Token ids of a whole stream."""
    data = b""
    while b"[DONE]" not in data:
        part = connection.recv(1 << 16)
        if not part:
            break
        data += part
    connection.close()
    frames = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: {")]
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    return [token for choice in choices for token in choice.get("token_ids", [])]


def leave_at_random(port: int, work: queue.Queue[list[int]], left: dict[tuple[int, ...], float], most_s: float) -> None:
    draw = random.Random(threading.get_ident())
    while True:
        try:
            prompt = work.get_nowait()
        except queue.Empty:
            return
        connection = ask(port, prompt, OUTPUT)
        connection.settimeout(draw.random() * most_s)
        end_s = time.perf_counter() + (connection.gettimeout() or 0.0)
        try:
            while (rest_s := end_s - time.perf_counter()) > 0:
                connection.settimeout(rest_s)
                if not connection.recv(1 << 16):
                    break
        except TimeoutError:
            pass
        left[tuple(prompt)] = time.perf_counter()
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--most-s", type=float, default=2.0, help="latest moment of leaving, after asking")
    asked = parser.parse_args()
    draw = random.Random(1)
    with LLM(asked.model, max_sequences=SLOTS, kv_bytes=64 << 20) as llm:
        backend, listening, ready = Watched(llm), listen("127.0.0.1", 0), queue.SimpleQueue()
        served = Served("m", backend)  # type: ignore[arg-type]
        server = Server(Door([served], Keys()), listening, ready.put)
        thread = threading.Thread(target=server.run)
        thread.start()
        port = int(ready.get().rpartition(":")[2])
        top = llm.facts.vocabulary
        controls = [[draw.randrange(1000, top) for _ in range(60 + 20 * i)] for i in range(2)]
        alone = [read_all(ask(port, control, 200)) for control in controls]
        work: queue.Queue[list[int]] = queue.Queue()
        for _ in range(asked.requests):
            work.put([draw.randrange(1000, top) for _ in range(draw.randrange(32, 256))])
        left: dict[tuple[int, ...], float] = {}
        llm.account(reset=True)
        watch, began_s = CpuWatch(), time.perf_counter()
        callers = [
            threading.Thread(target=leave_at_random, args=(port, work, left, asked.most_s)) for _ in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        beside = []
        while any(caller.is_alive() for caller in callers):
            streams = [ask(port, control, 200) for control in controls]
            beside.append([read_all(stream) for stream in streams])
        for caller in callers:
            caller.join()
        wall_s, foreign = time.perf_counter() - began_s, watch.foreign_cpu_share()
        document = _judge(llm, backend, left) | {
            "requests": asked.requests, "wall_s": wall_s, "foreign_cpu_share": foreign,
            "control_streams": 2 * len(beside), "control_same": all(one == alone for one in beside),
        }  # fmt: skip
        server.drain()
        thread.join()
        served.close()
        listening.close()
    print(json.dumps({key: value for key, value in document.items()}, indent=1))
    document |= {"schema": "ridgeline.serve_cancel/1", "machine": msgspec.to_builtins(fingerprint())}
    print(json.dumps(document))


def _judge(llm: LLM, backend: Watched, left: dict[tuple[int, ...], float]) -> dict[str, Any]:
    time.sleep(1.0)
    times = next(iter(llm._tables(False).values())).step_times()
    kinds: Counter[str] = Counter()
    over_ms: list[float] = []
    for prompt, left_s in left.items():
        event = backend.ended.get(prompt)
        if event is None:
            kinds["never reached the engine"] += 1
        elif event.finish != "cancelled":
            kinds["had ended"] += 1
        else:
            kinds["decode" if prompt in backend.begun else "prefill" if event.planned_s else "queue"] += 1
            under_way = times[(times[:, 0] <= left_s + 0.005) & (times[:, 1] >= left_s)]
            step_s = float((under_way[:, 1] - under_way[:, 0]).max()) if len(under_way) else 0.0
            over_ms.append(1e3 * (event.at_s - left_s - step_s))
    asked_s = time.perf_counter()
    while llm.pulse is None or llm.pulse.at_s < asked_s:
        llm.ask_pulse()
        time.sleep(0.05)
    over_ms.sort()
    pulse = llm.pulse
    return {
        "left_in": dict(kinds), "cancelled": len(over_ms), "over_50_ms": sum(one > 50 for one in over_ms),
        "beyond_step_ms": {share: over_ms[int(share * (len(over_ms) - 1))] for share in (0.5, 0.9, 0.99, 1.0)},
        "blocks_held_after": pulse.blocks_held, "running_after": pulse.running,
        "blocks_sum": pulse.blocks_free + pulse.blocks_held + pulse.blocks_cached == pulse.blocks,
    }  # fmt: skip


if __name__ == "__main__":
    main()

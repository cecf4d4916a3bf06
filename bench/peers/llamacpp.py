"""llama.cpp on a workload: its server (continuous batching, loopback only) and, for one request, llama-bench.

python bench/peers/llamacpp.py --model FILE.gguf --workload W.jsonl [--environment DIR] [--threads 2] [--slots 32]
The last line of stdout is one JSON document in the form of `ridgeline bench --json`. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from environment import CACHE, LLAMACPP_BUILD, environment

HOST = "127.0.0.1"
START_S, REQUEST_S = 60.0, 900.0
WARM_UP = {"prompt_ids": list(range(500, 564)), "output_tokens": 8}
Json = dict[str, Any]


class Binaries:
    """llama.cpp's programs in an environment, and the names their shared libraries go by."""

    def __init__(self, folder: Path, links: Path) -> None:
        found = sorted(folder.rglob("llama-server"))
        if not found:
            raise SystemExit(f"no llama-server under {folder}")
        self.folder = found[0].parent
        for library in self.folder.glob("*.so.*"):  # a wheel loses the symbolic links libx.so.0 -> libx.so.0.1.2
            short = links / re.sub(r"(\.so\.\d+).*", r"\1", library.name)
            if not short.exists():
                short.symlink_to(library)
        self.settings = os.environ | {"LD_LIBRARY_PATH": str(links)}

    def run(self, program: str, *arguments: object) -> str:
        command = [str(self.folder / program), *map(str, arguments)]
        done = subprocess.run(command, env=self.settings, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout


def quantized(binaries: Binaries, model: Path, kind: str, cache: Path) -> Path:
    """`model` as it is ("file"), or its dequantised weights stored as `kind` (Q4_0, Q8_0, BF16)."""
    if kind == "file":
        return model
    folder = cache.expanduser() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    full, target = folder / f"{model.stem}.F32.gguf", folder / f"{model.stem}.{kind}.gguf"
    if not full.exists():
        binaries.run("llama-quantize", "--allow-requantize", model, full.with_suffix(".part"), "F32")
        full.with_suffix(".part").rename(full)
    if not target.exists():
        binaries.run("llama-quantize", full, target.with_suffix(".part"), kind)
        target.with_suffix(".part").rename(target)
    return target


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


@contextlib.contextmanager
def server(binaries: Binaries, arguments: list[str], log: Path) -> Iterator[tuple[int, int, float]]:
    """(port, process id, seconds to load) of a running llama-server."""
    port, begin = free_port(), time.perf_counter()
    command = [str(binaries.folder / "llama-server"), "--host", HOST, "--port", str(port), *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=binaries.settings, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            while not is_healthy(port):
                if process.poll() is not None or time.perf_counter() - begin > START_S:
                    raise SystemExit(f"llama-server did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.05)
            yield port, process.pid, time.perf_counter() - begin
        finally:
            process.terminate()
            process.wait(30)


def ask(port: int, line: Json, start_s: float, stream: bool) -> Json:
    """One request; times are from `start_s`, by this client's clock."""
    tokens = int(line["output_tokens"])
    body = {
        "prompt": line["prompt_ids"], "n_predict": tokens, "ignore_eos": True, "temperature": 0.0,
        "samplers": ["temperature"], "cache_prompt": False, "return_tokens": True, "stream": stream,
    }  # fmt: skip
    connection = http.client.HTTPConnection(HOST, port, timeout=REQUEST_S)
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"llama-server answered {response.status}: {response.read()[:500]!r}")
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
    if len(ids) != tokens:
        raise SystemExit(f"llama-server made {len(ids)} tokens of {tokens}")
    tpot_s = (end_s - first_s) / (tokens - 1) if first_s is not None and tokens > 1 else None
    return {"ids": ids, "ttft_s": first_s, "tpot_s": tpot_s, "e2e_s": end_s}


def peak_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def system_line(log: Path) -> str:
    """What the running library says it uses: "AVX512 = 1 | AVX512_VNNI = 1 | ..."."""
    found = re.findall(r"system_info:.*?\|(.*)", log.read_text(errors="replace"))
    return re.sub(r"\s+", " ", found[0]).strip(" |") if found else "not said"


def run_server(binaries: Binaries, model: Path, lines: list[Json], options: argparse.Namespace, log: Path) -> Json:
    slots = min(options.slots, len(lines))
    longest = max(len(line["prompt_ids"]) + int(line["output_tokens"]) for line in lines)
    context = slots * (-(-(longest + 8) // 256) * 256)
    flags = ["-m", str(model), "-np", str(slots), "-c", str(context), "-t", str(options.threads)]
    flags += ["-tb", str(options.threads), "--no-ui", "--cache-ram", "0", "--no-cache-prompt", "--log-verbosity", "4"]
    with server(binaries, flags, log) as (port, process, load_s), ThreadPoolExecutor(len(lines)) as people:
        ask(port, WARM_UP, time.perf_counter(), True)
        start_s = time.perf_counter()
        requests = list(people.map(lambda line: ask(port, line, start_s, len(lines) == 1), lines))
        wall_s = time.perf_counter() - start_s
        peak = peak_bytes(process)
    tokens = sum(len(request["ids"]) for request in requests)
    return {
        "requests": requests,
        "summary": {"wall_s": wall_s, "output_tokens_per_s": tokens / wall_s},
        "load_s": load_s, "peak_bytes": peak, "server_flags": flags[2:],
    }  # fmt: skip


def run_bench(binaries: Binaries, model: Path, line: Json, threads: int) -> Json:
    """llama-bench without the server: prompt seconds, and tokens/s of generation behind a prompt of that length."""
    tokens_in, tokens_out = len(line["prompt_ids"]), int(line["output_tokens"])
    common = ["-m", model, "-t", threads, "-r", 1, "-o", "json"]
    prompt = json.loads(binaries.run("llama-bench", *common, "-p", tokens_in, "-n", 0))[0]
    output = json.loads(binaries.run("llama-bench", *common, "-p", 0, "-n", tokens_out, "-d", tokens_in))[0]
    return {
        "ttft_s": tokens_in / prompt["avg_ts"],
        "decode_tokens_per_s": output["avg_ts"],
        "weight_bytes": output["model_size"],
        "kind": output["model_type"],
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--kind", default="file", help="file (as it is), Q4_0, Q8_0 or BF16")
    parser.add_argument("--environment", type=Path, help="a made environment; default: make one under --cache")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=32)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    folder = options.environment or environment("llamacpp", options.cache)
    lines = [json.loads(line) for line in options.workload.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as scratch:
        binaries = Binaries(folder, Path(scratch))
        model = quantized(binaries, options.model, options.kind, options.cache)
        log = Path(scratch) / "server.log"
        result = run_server(binaries, model, lines, options, log)
        result |= {"engine": "llama.cpp", "precision": model.stem.rpartition(".")[2], "threads": options.threads}
        result["build"] = f"{LLAMACPP_BUILD}; {system_line(log)}"
        if len(lines) == 1:
            result["bench"] = run_bench(binaries, model, lines[0], options.threads)
    print(f"llama.cpp {result['precision']}: {result['summary']}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

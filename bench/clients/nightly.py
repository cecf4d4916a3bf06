"""Foreign clients and tools, each in its own environment, against our server; a line each, 1 when one fails.

python bench/clients/nightly.py [NAME ...] [--venvs DIR]   names: litellm langchain llm npm lm-eval aiperf
An environment that is missing is said with the command that makes it. Last line: one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEY, NAME, CHAT, TOOLS = "sk-test", "tiny", "smollm2-135m", "qwen2.5-coder-0.5b"  # whose template knows tools
NEEDS = {
    "litellm": ("c-litellm/bin/python", "pip install litellm mcp"),
    "langchain": ("c-langchain-openai/bin/python", "pip install langchain-openai"),
    "llm": ("c-llm/bin/llm", "pip install llm"),
    "npm": ("c-npm/node_modules/openai", "npm install openai"),
    "lm-eval": ("c-lm-evalapi/bin/lm-eval", "pip install 'lm-eval[api]'"),
    "aiperf": ("c-aiperf/bin/aiperf", "pip install aiperf"),
}
FIRST_MS, NEXT_MS = 150.0, 10.0


@contextlib.contextmanager
def served(model: str, *options: str) -> Iterator[str]:
    """A server's address."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text(KEY + "\n")
        command = [sys.executable, "-m", "ridgeline.cli.main", "serve", model, "--name", NAME, "--port", "0", "--json"]
        with subprocess.Popen(
            [*command, "--api-key-file", str(keys), *options], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                yield json.loads(server.stdout.readline())["url"]  # type: ignore[union-attr]
            finally:
                server.terminate()


def run(command: list[str], **environment: str) -> str:
    """Its output; the last of its lines is what a client says of itself."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=500,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def get(url: str, path: str) -> str:
    connection = HTTPConnection(url.removeprefix("http://"))
    connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
    return connection.getresponse().read().decode()


def simple(tool: str, command: list[str], **environment: str) -> dict[str, Any]:
    with served(TOOLS) as url:
        return {"said": run([*command, url, KEY, NAME], **environment).strip().splitlines()[-1]}


def llm(tool: str) -> dict[str, Any]:
    with served(TOOLS) as url, tempfile.TemporaryDirectory() as home:
        known = f'model_id: ridgeline, model_name: {NAME}, api_base: "{url}/v1", api_key_name: ours'
        Path(home, "extra-openai-models.yaml").write_text(f"- {{{known}, supports_tools: true}}\n")
        for more in ((), ("--no-stream",)):
            said = run([tool, "-m", "ridgeline", "--key", KEY, *more, "-o", "max_tokens", "20", "Say hi."],
                       LLM_USER_PATH=home)  # fmt: skip
            assert said.strip(), "nothing was said"
        logged = json.loads(run([tool, "logs", "-n", "1", "--json"], LLM_USER_PATH=home))[0]
        assert logged["input_tokens"] and logged["output_tokens"], logged
        python = str(Path(tool).with_name("python"))
        called = run([python, str(HERE / "llm_client.py"), url, KEY, NAME], LLM_USER_PATH=home).strip()
    tokens = f"{logged['input_tokens']} and {logged['output_tokens']}"
    return {"said": f"llm: completes, streams, logs {tokens} tokens, {called}"}


def lm_eval(tool: str) -> dict[str, Any]:
    """The same pairs through the server and in process: equal floats, warm and cold cache."""
    from ridgeline.llm import LLM

    with served(CHAT, "--context", "1024") as url, tempfile.TemporaryDirectory() as out:
        scores: list[list[float]] = []
        for turn in ("cold", "warm"):
            path = f"{out}/{turn}"
            run(
                [
                    tool, "run", "--model", "local-completions", "--model_args",
                    f"base_url={url}/v1/completions,model={NAME},tokenizer_backend=remote,auth_token={KEY},"
                    "num_concurrent=4,max_length=1024", "--include_path", str(HERE / "lm_eval"), "--tasks",
                    "ridgeline_tiny", "--batch_size", "8", "--log_samples", "--output_path", path,
                ],
                OPENAI_API_KEY=KEY,
            )  # fmt: skip
            (samples,) = glob.glob(f"{path}/**/samples_*.jsonl", recursive=True)
            lines = sorted((json.loads(line) for line in Path(samples).read_text().splitlines()), key=_place)
            (results,) = glob.glob(f"{path}/**/results_*.json", recursive=True)
            accuracy = json.loads(Path(results).read_text())["results"]["ridgeline_tiny"]["acc,none"]
            scores.append([float(answer[0]) for line in lines for answer in line["filtered_resps"]])
    rows = [json.loads(line) for line in (HERE / "lm_eval/ridgeline_tiny.jsonl").read_text().splitlines()]
    ours, right = [], 0
    with LLM(CHAT, context=1024) as model:
        for row in rows:
            prompt = f"Question: {row['question']}\nAnswer:"
            own = [_score(model, prompt, f" {choice}") for choice in row["choices"]]
            right += own.index(max(own)) == row["answer"]
            ours += own
    same = scores[0] == scores[1] == ours
    differs = max(abs(a - b) for a, b in zip(scores[0], ours, strict=True))
    assert same and accuracy == right / len(rows), f"scores differ by up to {differs}: {accuracy} and {right}"
    return {"said": f"lm-eval: {len(ours)} scores equal in process, cold and warm, bit for bit; accuracy {accuracy}"}


def _place(line: dict[str, Any]) -> int:
    return int(line["doc_id"])


def _score(model: Any, prompt: str, choice: str) -> float:
    """As lm-eval sums it: the tokens of both, less those of the prompt."""
    whole, begin = model.encode(prompt + choice), model.encode(prompt)
    return sum(model.score(whole)[0].logprobs[len(begin) - 1 :])


def aiperf(tool: str) -> dict[str, Any]:
    """A script of known times: what the tool measures, what the script says and what /metrics says."""
    home = Path(tempfile.mkdtemp())
    folder = _tokenizer(home)
    with served(folder, "--scripted", f"{FIRST_MS:g},{NEXT_MS:g}") as url, tempfile.TemporaryDirectory() as out:
        run(
            [
                tool, "profile", "-m", NAME, "--url", url, "--api-key", KEY, "--endpoint-type", "chat", "--streaming",
                "--tokenizer", "ours/tiny", "--isl", "64", "--osl", "32", "--extra-inputs", "ignore_eos:true",
                "--concurrency", "4", "--request-count", "200", "--use-server-token-count", "--ui", "none",
                "--artifact-dir", out,
            ],
            HF_HOME=str(home),
        )  # fmt: skip
        (path,) = glob.glob(f"{out}/**/profile_export_aiperf.json", recursive=True)
        told = json.loads(Path(path).read_text())
        text = get(url, "/metrics")
    means = {}
    for ours, theirs in (
        ("time_to_first_token", "time_to_first_token"),
        ("inter_token_latency", "inter_token_latency"),
    ):
        total, count = (
            float(re.search(rf"^ridgeline_{ours}_seconds_{part} (\S+)", text, re.M)[1])  # type: ignore[index]
            for part in ("sum", "count")
        )
        means[ours] = (1000 * total / count, float(told[theirs]["avg"]))
    apart = {name: theirs / ours - 1 for name, (ours, theirs) in means.items()}
    shown = ", ".join(
        f"{name} ours {a:.2f} ms, AIPerf {b:.2f} ms ({100 * apart[name]:+.1f} %)" for name, (a, b) in means.items()
    )
    return {"said": f"aiperf: {shown}", "means_ms": means, "apart": apart, "script_ms": [FIRST_MS, NEXT_MS]}


def _tokenizer(home: Path) -> str:
    """A tiny model with a tokenizer, also as `ours/tiny` of an offline cache: AIPerf takes no path (aiperf#1339)."""
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.cli.conftest import write_model

    folder = Path(write_model(home / "tiny"))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    kept = home / "hub" / "models--ours--tiny"
    commit = "a" * 40
    (kept / "snapshots" / commit).mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (kept / "snapshots" / commit / name).write_bytes((folder / name).read_bytes())
    return str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NEEDS))
    parser.add_argument("--venvs", type=Path, default=Path(".venv-clients"))
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    for name in asked.names or NEEDS:
        tool, cure = asked.venvs / NEEDS[name][0], NEEDS[name][1]
        if not tool.exists():
            found[name] = {"missing": f"{tool} is not there: {cure}"}
            print(f"{name}: {found[name]['missing']}", flush=True)
            continue
        try:
            if name in ("litellm", "langchain"):
                found[name] = simple(name, [str(tool), str(HERE / f"{name}_client.py")])
            elif name == "npm":
                found[name] = simple(name, ["node", str(HERE / "openai_client.mjs")], CLIENT_HOME=str(tool.parents[1]))
            else:
                found[name] = {"llm": llm, "lm-eval": lm_eval, "aiperf": aiperf}[name](str(tool))
            print(found[name]["said"], flush=True)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
            print(f"{name} FAILED: {error}", flush=True)
    print(json.dumps({"schema": "ridgeline.clients/1", "clients": found}))
    return any("failed" in one for one in found.values())


if __name__ == "__main__":
    sys.exit(main())

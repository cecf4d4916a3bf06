"""transformers' generate on a workload: one request as it is, many in static batches of 16 (left-padded, FCFS).

Run inside its own environment (bench/peers/environment.py transformers):
  PYTHON bench/peers/transformers_generate.py --model FILE.gguf --workload W.jsonl [--dtype bfloat16] [--threads 2]
A GGUF takes half a minute to load, so it is converted once into --cache. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

CACHE = Path("~/.cache/ridgeline/peers")
BATCH = 16
PAD = 0
Json = dict[str, Any]


class Stopwatch:
    """A streamer that only writes down when tokens come; generate hands it the prompt first."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.times_s: list[float] = []
        self._is_prompt = True

    def put(self, tokens: torch.Tensor) -> None:
        if not self._is_prompt:
            self.times_s.append(time.perf_counter() - self.start_s)
        self._is_prompt = False

    def end(self) -> None:
        pass


def converted(model: Path, dtype: str, cache: Path) -> Path:
    """A folder with the dequantised weights in `dtype`."""
    folder = cache.expanduser() / "models" / f"{model.stem}-{dtype}"
    if not (folder / "config.json").exists():
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name)
        config = loaded.config
        if hasattr(config, "quantization_config"):  # transformers refuses to save what it dequantised
            del config.quantization_config
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(folder)
    return folder


def generate(model: Any, lines: list[Json], start_s: float) -> list[Json]:
    """One static batch, left-padded; every row runs to the longest output, and only asked tokens count."""
    width = max(len(line["prompt_ids"]) for line in lines)
    steps = max(int(line["output_tokens"]) for line in lines)
    rows = [[PAD] * (width - len(line["prompt_ids"])) + line["prompt_ids"] for line in lines]
    mask = [[0] * (width - len(line["prompt_ids"])) + [1] * len(line["prompt_ids"]) for line in lines]
    watch = Stopwatch(start_s)
    output = model.generate(
        torch.tensor(rows), attention_mask=torch.tensor(mask), do_sample=False, max_new_tokens=steps,
        min_new_tokens=steps, eos_token_id=None, pad_token_id=PAD, streamer=watch, use_cache=True,
    )  # fmt: skip
    results = []
    for row, line in enumerate(lines):
        tokens = int(line["output_tokens"])
        first_s, last_s = watch.times_s[0], watch.times_s[tokens - 1]
        tpot_s = (last_s - first_s) / (tokens - 1) if tokens > 1 else None
        ids = output[row, width : width + tokens].tolist()
        results.append({"ids": ids, "ttft_s": first_s, "tpot_s": tpot_s, "e2e_s": last_s})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    lines = [json.loads(line) for line in options.workload.read_text(encoding="utf-8").splitlines()]
    folder = converted(options.model, options.dtype, options.cache)
    begin = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype)).eval()
    load_s = time.perf_counter() - begin
    with torch.inference_mode():
        generate(model, [{"prompt_ids": list(range(500, 564)), "output_tokens": 8}], time.perf_counter())
        start_s = time.perf_counter()
        requests = [r for at in range(0, len(lines), BATCH) for r in generate(model, lines[at : at + BATCH], start_s)]
        wall_s = time.perf_counter() - start_s
    tokens = sum(len(request["ids"]) for request in requests)
    result = {
        "engine": "transformers", "precision": options.dtype, "threads": options.threads, "load_s": load_s,
        "build": f"transformers {transformers.__version__}, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}, batch {min(BATCH, len(lines))}",
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "requests": requests, "summary": {"wall_s": wall_s, "output_tokens_per_s": tokens / wall_s},
    }  # fmt: skip
    print(f"transformers {options.dtype}: {result['summary']}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""transformers' generate as a worker of the peer table (see protocol.py): many requests in static batches of 16.

A batch is left-padded to its longest prompt and runs to its longest output; only asked tokens count.
"""

from __future__ import annotations

import argparse
import platform

import torch
import transformers
from protocol import Engine, Json, Watch, serve

BATCH = 16
PAD = 0


class Streamer:
    """What generate tells of each step's tokens; it hands over the prompt first."""

    def __init__(self, requests: list[Json], start: int, watch: Watch) -> None:
        self._requests, self._start, self._watch, self._step = requests, start, watch, -1

    def put(self, tokens: torch.Tensor) -> None:
        for index, request in enumerate(self._requests):
            if 0 <= self._step < request["output_tokens"]:
                self._watch.add(self._start + index, [int(tokens[index])])
        self._step += 1

    def end(self) -> None:
        pass


class Transformers:
    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        transformers.logging.set_verbosity_error()
        kind = {"bf16": torch.bfloat16, "f32": torch.float32}[options.precision]
        self._model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=kind).eval()
        self.facts: Json = {
            "build": f"transformers {transformers.__version__}, torch {torch.__version__} (wheel), "
            f"{torch.backends.cpu.get_cpu_capability()}, {options.precision}, static batches of {BATCH}; "
            f"Python {platform.python_version()}",
            "weight_bytes": sum(p.numel() * p.element_size() for p in self._model.parameters()),
        }

    @torch.inference_mode()
    def run(self, job: Json) -> Json:
        requests = job["requests"]
        watch = Watch(len(requests))
        for start in range(0, len(requests), BATCH):
            self._batch(requests[start : start + BATCH], start, watch)
        return {"requests": watch.results()}

    def _batch(self, requests: list[Json], start: int, watch: Watch) -> None:
        width = max(len(one["prompt_ids"]) for one in requests)
        steps = max(one["output_tokens"] for one in requests)
        padding = [width - len(one["prompt_ids"]) for one in requests]
        rows = [[PAD] * pad + one["prompt_ids"] for pad, one in zip(padding, requests, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        self._model.generate(
            torch.tensor(rows), attention_mask=torch.tensor(mask), do_sample=False, max_new_tokens=steps,
            min_new_tokens=steps, eos_token_id=None, pad_token_id=PAD, streamer=Streamer(requests, start, watch),
            use_cache=True,
        )  # fmt: skip


def load(options: argparse.Namespace) -> Engine:
    return Transformers(options)


if __name__ == "__main__":
    serve(load)

"""ONNX Runtime GenAI as a worker of the peer table (see protocol.py): its Generator, many requests in static batches.

A batch is left-padded to its longest prompt and runs to its longest output; only asked tokens count.
"""

from __future__ import annotations

import argparse
import platform

import numpy as np
import onnxruntime_genai
from protocol import Engine, Json, Watch, serve

BATCH = 16
PAD = 2  # the model's pad token: what the generator masks


class OnnxRuntime:
    def __init__(self, options: argparse.Namespace) -> None:
        config = onnxruntime_genai.Config(str(options.model))
        config.overlay(
            '{"model": {"decoder": {"session_options": {"intra_op_num_threads": %d}}}}' % options.threads  # noqa: UP031
        )
        self._model = onnxruntime_genai.Model(config)
        self.facts: Json = {
            "build": f"onnxruntime-genai {onnxruntime_genai.__version__} (wheel, MLAS picks its instruction set), "
            f"{options.precision}, accuracy level 4, static batches of {BATCH}; Python {platform.python_version()}",
            "weight_bytes": (options.model / "model.onnx.data").stat().st_size,
        }

    def run(self, job: Json) -> Json:
        requests = job["requests"]
        watch = Watch(len(requests))
        for start in range(0, len(requests), BATCH):
            self._batch(requests[start : start + BATCH], start, watch)
        return {"requests": watch.results()}

    def _batch(self, requests: list[Json], start: int, watch: Watch) -> None:
        width = max(len(one["prompt_ids"]) for one in requests)
        steps = max(one["output_tokens"] for one in requests)
        rows = [[PAD] * (width - len(one["prompt_ids"])) + one["prompt_ids"] for one in requests]
        wanted = onnxruntime_genai.GeneratorParams(self._model)
        length = width + steps
        wanted.set_search_options(do_sample=False, max_length=length, min_length=length, batch_size=len(rows))
        generator = onnxruntime_genai.Generator(self._model, wanted)
        generator.append_tokens(np.array(rows, np.int32))
        for step in range(steps):
            generator.generate_next_token()
            for index, token in enumerate(generator.get_next_tokens()):
                if step < requests[index]["output_tokens"]:
                    watch.add(start + index, [int(token)])


def load(options: argparse.Namespace) -> Engine:
    return OnnxRuntime(options)


if __name__ == "__main__":
    serve(load)

"""OpenVINO GenAI as a worker of the peer table (see protocol.py): its continuous-batching pipeline on the CPU."""

from __future__ import annotations

import argparse
import platform

import numpy as np
import openvino
import openvino_genai
from protocol import Engine, Json, Watch, serve

POOL_GB = 2  # of KV cache, as much as the longest workload needs with room
STEP_TOKENS = 512  # as ours


class OpenVino:
    def __init__(self, options: argparse.Namespace) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = POOL_GB
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(options.model), scheduler, "CPU", properties)
        self._number = 0
        self.facts: Json = {
            "build": f"openvino-genai {openvino_genai.__version__} (openvino {openvino.__version__}, wheel, CPU plugin "
            f"picks its instruction set), {options.precision}, continuous batching, steps of {STEP_TOKENS} tokens, "
            f"prefix caching, KV pool {POOL_GB} GB; Python {platform.python_version()}",
            "weight_bytes": (options.model / "openvino_model.bin").stat().st_size,
        }

    def run(self, job: Json) -> Json:
        requests = job["requests"]
        watch = Watch(len(requests))
        handles = [self._add(request) for request in requests]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for index, handle in enumerate(handles):
                if handle.can_read():
                    watch.add(index, [token for output in handle.read().values() for token in output.generated_ids])
        return {"requests": watch.results()}

    def _add(self, request: Json) -> openvino_genai.py_openvino_genai.GenerationHandle:
        wanted = openvino_genai.GenerationConfig()
        wanted.max_new_tokens = wanted.min_new_tokens = request["output_tokens"]
        wanted.ignore_eos, wanted.do_sample, wanted.apply_chat_template = True, False, False
        self._number += 1
        ids = openvino.Tensor(np.array([request["prompt_ids"]], np.int64))
        return self._pipeline.add_request(self._number, ids, wanted)


def load(options: argparse.Namespace) -> Engine:
    return OpenVino(options)


if __name__ == "__main__":
    serve(load)

"""vLLM's CPU build as a worker of the peer table (see protocol.py): its engine in this process, without tokenizer."""

from __future__ import annotations

import argparse
import os
import platform

from protocol import Engine, Json, Watch, serve

POOL_GIB = 1  # of KV cache
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": str(POOL_GIB),
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Vllm:
    def __init__(self, options: argparse.Namespace) -> None:
        os.environ.update(SETTINGS)  # read when it is imported
        import torch
        import vllm

        self._vllm = vllm
        kind = {"bf16": "bfloat16", "f32": "float32"}[options.precision]
        self._engine = vllm.LLM(
            model=str(options.model), dtype=kind, max_model_len=options.context, max_num_seqs=64,
            skip_tokenizer_init=True, disable_log_stats=True,
        ).llm_engine  # fmt: skip
        self._number = 0
        size = {"bf16": 2, "f32": 4}[options.precision]
        self.facts: Json = {
            "build": f"vllm {vllm.__version__} (wheel), torch {torch.__version__}, "
            f"{torch.backends.cpu.get_cpu_capability()}, {kind}, prefix caching, KV pool {POOL_GIB} GiB, engine in the "
            f"caller's process; Python {platform.python_version()}",
            "weight_bytes": (options.model / "model.safetensors").stat().st_size * size // 2,
        }

    def run(self, job: Json) -> Json:
        requests = job["requests"]
        watch = Watch(len(requests))
        names: dict[str, int] = {}
        for index, request in enumerate(requests):
            self._number += 1
            names[str(self._number)] = index
            wanted = self._vllm.SamplingParams(
                temperature=0, max_tokens=request["output_tokens"], ignore_eos=True, detokenize=False,
                output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
            )  # fmt: skip
            self._engine.add_request(str(self._number), {"prompt_token_ids": request["prompt_ids"]}, wanted)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                watch.add(names[output.request_id], list(output.outputs[0].token_ids))
        return {"requests": watch.results()}


def load(options: argparse.Namespace) -> Engine:
    return Vllm(options)


if __name__ == "__main__":
    serve(load)

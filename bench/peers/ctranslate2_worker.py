"""CTranslate2 as a worker of the peer table (see protocol.py): its Generator, one request after another."""

from __future__ import annotations

import argparse
import json
import platform

import ctranslate2
from protocol import Engine, Json, Watch, serve


class CTranslate2:
    def __init__(self, options: argparse.Namespace) -> None:
        self._model = ctranslate2.Generator(
            str(options.model), device="cpu", compute_type=options.precision, intra_threads=options.threads
        )
        self._words = json.loads((options.model / "vocabulary.json").read_text(encoding="utf-8"))
        self.facts: Json = {
            "build": f"ctranslate2 {ctranslate2.__version__} (wheel, picks its instruction set), "
            f"{options.precision}, one request at a time; Python {platform.python_version()}",
            "weight_bytes": (options.model / "model.bin").stat().st_size,
        }

    def run(self, job: Json) -> Json:
        requests = job["requests"]
        watch = Watch(len(requests))
        for index, request in enumerate(requests):

            def on_token(step: ctranslate2.GenerationStepResult, index: int = index) -> bool:
                watch.add(index, [step.token_id])
                return False

            self._model.generate_batch(
                [[self._words[token] for token in request["prompt_ids"]]], max_length=request["output_tokens"],
                min_length=request["output_tokens"], sampling_topk=1, include_prompt_in_result=False, callback=on_token,
            )  # fmt: skip
        return {"requests": watch.results()}


def load(options: argparse.Namespace) -> Engine:
    return CTranslate2(options)


if __name__ == "__main__":
    serve(load)

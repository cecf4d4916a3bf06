"""Rung 0 of the ladder: transformers' own generate() on the same requests, one after the other, where it is installed.

A comparison only: nothing of Ridgeline runs on it. Imported when the ladder asks, never otherwise.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.kit.errors import UserError
from ridgeline.run.probe import instruction_sets

from .ladder import WARM_OUTPUT, WARM_PROMPT, Measured, Rung
from .replay import Replay, RequestResult, summarise_replay
from .workload import Job

NATIVE_BF16 = "avx512_bf16"  # without it torch emulates bf16, and f32 is what one would use


def is_possible(source: Path | None) -> bool:
    """Whether transformers is here and can read the model: a directory, or a GGUF file when gguf is here too."""
    needed = ["torch", "transformers"] + (["gguf"] if source is not None and source.is_file() else [])
    return source is not None and all(importlib.util.find_spec(name) is not None for name in needed)


class TransformersModel:
    """Loads in bf16, or f32 on a processor without bf16 (a GGUF file is unpacked first). UserError when it cannot."""

    def __init__(self, source: Path, threads: int) -> None:
        torch: Any = importlib.import_module("torch")  # heavy, optional, and without types of its own
        transformers: Any = importlib.import_module("transformers")
        torch.set_num_threads(threads)
        kind = "bfloat16" if NATIVE_BF16 in instruction_sets() else "float32"
        self.rung = Rung("transformers", f"generate() in {kind}, one at a time", {})
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        where: dict[str, Any] = {"gguf_file": source.name} if source.is_file() else {}
        folder = str(source.parent if source.is_file() else source)
        started_s = time.perf_counter()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # its bars do not know that nobody watches
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, **where, dtype=getattr(torch, kind), local_files_only=True
                )
        except (ValueError, OSError, ImportError) as error:
            raise UserError(f"transformers cannot load {source}: {error}") from error
        self._torch, self._model = torch, model.eval()
        self.version = str(transformers.__version__)
        self._load_s = time.perf_counter() - started_s
        warm = Job(tuple(range(100, 100 + WARM_PROMPT)), WARM_OUTPUT)
        self._cold_s, self._warm_s = (self.replay([warm]).requests[0].ttft_s or 0.0 for _ in range(2))

    def measure(self, jobs: Sequence[Job], progress: Callable[[int], None]) -> Measured:
        """One run, beside the cold and warm first token of this process."""
        return Measured(self._cold_s, self._warm_s, self._load_s, self.replay(jobs, progress))

    def replay(self, jobs: Sequence[Job], progress: Callable[[int], None] = lambda done: None) -> Replay:
        """Greedy, end-of-sequence ignored; every request waits for those before it."""
        start = time.perf_counter()
        results = []
        for job in jobs:
            times: list[float] = []
            ids = self._generate(job, times)
            ttft_s, e2e_s = times[0] - start, times[-1] - start
            tpot_s = (e2e_s - ttft_s) / (len(ids) - 1) if len(ids) > 1 else None
            gaps = tuple(float(gap) for gap in np.diff(times))
            results.append(RequestResult(ids, len(job.prompt), 0.0, ttft_s, tpot_s, e2e_s, gaps))
            progress(1)
        return Replay(tuple(results), summarise_replay(results, 0.0))

    def _generate(self, job: Job, times: list[float]) -> tuple[int, ...]:
        prompt = self._torch.tensor([job.prompt])
        with self._torch.inference_mode():
            out = self._model.generate(
                prompt, attention_mask=self._torch.ones_like(prompt), max_new_tokens=job.output_tokens,
                min_new_tokens=job.output_tokens, do_sample=False, pad_token_id=0, streamer=_Clock(times),
            )  # fmt: skip
        return tuple(int(token) for token in out[0, len(job.prompt) :])


class _Clock:
    """generate() hands it the prompt, then each token, then the end."""

    def __init__(self, times: list[float]) -> None:
        self._times, self._is_prompt = times, True

    def put(self, value: Any) -> None:
        if not self._is_prompt:
            self._times.append(time.perf_counter())
        self._is_prompt = False

    def end(self) -> None:
        pass

"""The ladder from naive generate to the engine: every rung is a configuration of the one engine (A20, A21, B1-B9).

Measured through the engine process, predicted by the same scheduler on a virtual clock. Rung 0 (transformers) runs
where it is installed. Owns the rungs and their workload; the picture is drawn by report/.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from ridgeline.engine.build import rehearse
from ridgeline.engine.client import EngineClient
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.clock import VirtualClock
from ridgeline.memory.storage.storage import BLOCK_TOKENS
from ridgeline.run.machine import Machine

from .workload import Job, Outcome, Summary, outcome_of, requests_of, run_workload, summarise_outcomes

REQUESTS = 12
SEED = 0


class Rung(msgspec.Struct, frozen=True):
    """name, what it adds in words, and the engine options that make it."""

    name: str
    adds: str
    options: dict[str, Any]


class RungResult(msgspec.Struct, frozen=True):
    """cold: the first run after the engine started (the warm-up artefact, A20); measured: median of the warm runs."""

    name: str
    adds: str
    options: dict[str, Any]
    cold: Summary
    measured: Summary
    repeats: int
    predicted: Summary | None
    error: float | None  # predicted / measured output tokens per second - 1


def jobs() -> list[Job]:
    """Short and long prompts, heavy-tailed outputs; small enough for the rung that computes everything anew."""
    generator = np.random.default_rng(SEED)
    prompts = np.clip(generator.lognormal(4.2, 0.7, REQUESTS), 16, 320).astype(int)
    outputs = np.clip(generator.lognormal(2.4, 0.8, REQUESTS), 4, 64).astype(int)
    return [
        Job(int(m), prompt_ids=tuple(int(t) for t in generator.integers(1000, 30000, n)))
        for n, m in zip(prompts, outputs, strict=True)
    ]


def rungs(kv_bytes_per_token: int, longest: int) -> list[Rung]:
    """One KV pool for all: room for three sequences of the longest size, so that paging has something to win."""
    blocks = -(-longest // BLOCK_TOKENS)
    pool = 3 * blocks * BLOCK_TOKENS * kv_bytes_per_token
    whole: dict[str, Any] = {"weights": "bf16", "kv_bytes": pool, "step_tokens": 1024, "context": blocks * BLOCK_TOKENS}
    alone = whole | {"max_sequences": 1, "paging": False}
    return [
        Rung("naive", "one request at a time, everything computed anew for every token", alone | {"cache": False}),
        Rung("KV cache", "keys and values are kept", alone),
        Rung("static batch", "three at a time, as a batch that ends together",
             whole | {"max_sequences": 3, "paging": False, "batching": "static"}),
        Rung("continuous", "a finished sequence makes room at once", whole | {"max_sequences": 3, "paging": False}),
        Rung("paged KV", "blocks on demand: more sequences in the same memory", whole | {"max_sequences": REQUESTS}),
        Rung("chunked prefill", "at most 96 tokens a step, so that nobody's next token waits for a long prompt",
             whole | {"max_sequences": REQUESTS, "step_tokens": 96}),
        Rung("low-bit weights", "the file's own 4 and 8 bits instead of 16",
             whole | {"max_sequences": REQUESTS, "step_tokens": 96, "weights": "native"}),
    ]  # fmt: skip


def climb(
    model: str, kv_bytes_per_token: int, machine: Machine, repeats: int,
    progress: Callable[[str], None], options: Mapping[str, Any],
) -> list[RungResult]:  # fmt: skip
    """Measure all rungs, repeats interleaved over rungs, and predict each."""
    work = jobs()
    longest = max(len(job.prompt_ids or ()) + job.output_tokens for job in work)
    ladder = [
        msgspec.structs.replace(rung, options=rung.options | dict(options))
        for rung in rungs(kv_bytes_per_token, longest)
    ]
    cold: list[Summary] = []
    clients: list[EngineClient] = []
    try:
        for rung in ladder:
            progress(f"{rung.name}: start and first run")
            clients.append(EngineClient(EngineConfig(model, **rung.options)))
            cold.append(summarise_outcomes(run_workload(clients[-1], work)))
        warm: list[list[Summary]] = [[] for _ in ladder]
        for repeat in range(repeats):
            for rung, client, runs in zip(ladder, clients, warm, strict=True):
                progress(f"{rung.name}: run {repeat + 1} of {repeats}")
                runs.append(summarise_outcomes(run_workload(client, work)))
    finally:
        for client in clients:
            client.close()
    results = []
    for rung, first, runs in zip(ladder, cold, warm, strict=True):
        predicted = predict(EngineConfig(model, **rung.options), work, machine)
        measured = median(runs)
        error = predicted.output_tokens_per_s / measured.output_tokens_per_s - 1
        results.append(RungResult(rung.name, rung.adds, rung.options, first, measured, repeats, predicted, error))
    return results


def predict(config: EngineConfig, work: Sequence[Job], machine: Machine) -> Summary:
    """The same scheduler and memory, each step taking its estimated time on a virtual clock."""
    clock = VirtualClock()
    engine = rehearse(config, machine, clock)
    waiting = sorted(requests_of(work), key=lambda request: request.arrival_s or 0.0)
    requests = {request.id: request for request in waiting}
    events: dict[str, list[Any]] = {name: [] for name in requests}
    outcomes: list[Outcome] = []
    while len(outcomes) < len(requests):
        while waiting and (waiting[0].arrival_s or 0.0) <= clock.now():
            engine.add(waiting.pop(0))
        if not engine.has_work:
            clock.advance((waiting[0].arrival_s or 0.0) - clock.now())
            continue
        for event in engine.step():
            events[event.request].append(event)
            if event.finish is not None:
                request = requests[event.request]
                outcomes.append(outcome_of(request, events[event.request], request.arrival_s or 0.0))
    engine.close()
    return summarise_outcomes(outcomes)


def median(runs: Sequence[Summary]) -> Summary:
    """Field by field."""
    fields = {
        name: statistics.median(getattr(run, name) for run in runs) for name in Summary.__struct_fields__
    }  # counts are equal in all runs
    return Summary(**{name: int(v) if isinstance(getattr(runs[0], name), int) else v for name, v in fields.items()})


def transformers_rung(gguf: str, repeats: int, progress: Callable[[str], None]) -> RungResult | None:
    """Rung 0: transformers' generate, one request at a time, bf16, its own KV cache. None where not installed."""
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        return None
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        return None
    import torch  # noqa: PLC0415  heavy and optional
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  heavy and optional

    progress("transformers generate: loading")
    folder, _, file = gguf.rpartition("/")
    peer = AutoModelForCausalLM.from_pretrained(folder or ".", gguf_file=file, dtype=torch.bfloat16)
    work = jobs()
    runs = []
    for repeat in range(repeats + 1):
        progress(f"transformers generate: run {repeat} of {repeats}")
        start = time.perf_counter()
        outcomes = []
        for job in work:
            ids = torch.tensor([job.prompt_ids])
            began = time.perf_counter()
            with torch.inference_mode():
                peer.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                    min_new_tokens=job.output_tokens, max_new_tokens=job.output_tokens,
                )  # fmt: skip
            now = time.perf_counter()
            tokens = job.output_tokens  # generate tells no token times: TTFT is not measured
            outcomes.append(Outcome((0,) * tokens, ids.shape[1], 0.0, 0.0, (now - began) / tokens, now - start, 0))
        runs.append(summarise_outcomes(outcomes))
    adds = "the usual starting point: generate(), one request at a time, bf16 (TTFT not told by it)"
    return RungResult("transformers", adds, {"weights": "bf16"}, runs[0], median(runs[1:]), repeats, None, None)

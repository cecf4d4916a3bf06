"""What is planted: for every kind its levels (intensities): a model, options, what is in its way, what is asked.

Which levels the rules were written against stands in plants_split.json.
"""

from __future__ import annotations

import json
import queue
import random
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ridgeline.llm import LLM
from ridgeline.perf.replay import replay
from ridgeline.perf.workload import Job
from ridgeline.state.request import Request

SMALL, QWEN, GEMMA = "smollm2-135m", "qwen2.5-coder-0.5b", "gemma-3-270m"
WORDS = ("water", "stone", "the", "river", "under", "a", "bridge", "of", "light", "and", "long", "years", "with", "his")

# A pool of 28 blocks (SmolLM2: 16 tokens of 23,040 bytes): one conversation of 256 tokens, and the host for others.
HOST_TIER = {"kv_bytes": 28 * 16 * 23_040, "host_kv_bytes": 256 << 20, "max_sequences": 1, "context": 400}

Ask = Callable[[LLM, random.Random], float]  # -> seconds observed


@dataclass(frozen=True)
class Level:
    """worker: what plant_worker.py puts in. prefix: a command before python. hogs: other processes that burn. scale:
    of the ceilings that are known. text_s: that every encode takes longer."""

    ask: Ask
    model: str = SMALL
    options: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, float] | None = None
    prefix: tuple[str, ...] = ()
    hogs: int = 0
    scale: float = 1.0
    text_s: float = 0.0


def ids(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(draw.randrange(1000, 4000) for _ in range(length))


def burst(count: int, prompt: int, output: int) -> Ask:
    """`count` requests at once."""

    def ask(llm: LLM, draw: random.Random) -> float:
        jobs = [Job(ids(draw, prompt + draw.randrange(max(1, prompt // 8))), output) for _ in range(count)]
        began_s = time.perf_counter()
        replay(llm, jobs)
        return time.perf_counter() - began_s

    return ask


def again(ask: Ask, seconds: float = 2.0) -> Ask:
    """Asked over and over for so long: tuned runs need calm moments, too."""

    def asks(llm: LLM, draw: random.Random) -> float:
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            ask(llm, draw)
        return time.perf_counter() - began_s

    return asks


def after_prompts(count: int, prompt: int, output: int) -> Ask:
    """`count` requests, observed once all of them have their first token: decoding only."""

    def ask(llm: LLM, draw: random.Random) -> float:
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        name = f"long-{draw.random()}"
        began_s, started, done = 0.0, 0, 0
        met: set[str] = set()
        for number in range(count):
            request = Request(f"{name}-{number}", ids(draw, prompt), output, ignore_stop=True)
            llm.submit_to(request, events.put)
        while done < count:
            event = events.get(timeout=120)
            if isinstance(event, Exception):
                raise event
            done += event.finish is not None
            if event.request not in met:
                met.add(event.request)
                started += 1
                if started == count:
                    llm.account(reset=True)
                    began_s = time.perf_counter()
        return time.perf_counter() - began_s

    return ask


def sampled(count: int, prompt: int, output: int, **sampling: Any) -> Ask:
    def ask(llm: LLM, draw: random.Random) -> float:
        prompts = [ids(draw, prompt) for _ in range(count)]
        began_s = time.perf_counter()
        llm.generate(prompts, max_tokens=output, ignore_stop=True, seed=draw.randrange(1 << 20), **sampling)
        return time.perf_counter() - began_s

    return ask


def texts(count: int, words: int, output: int) -> Ask:
    """One after the other, as text."""

    def ask(llm: LLM, draw: random.Random) -> float:
        began_s = time.perf_counter()
        for _ in range(count):
            llm.generate(" ".join(draw.choices(WORDS, k=words)), max_tokens=output, ignore_stop=True)
        return time.perf_counter() - began_s

    return ask


def reading(prompt: int, output: int, pause_s: float) -> Ask:
    """One stream whose reader does something else after every piece."""

    def ask(llm: LLM, draw: random.Random) -> float:
        began_s = time.perf_counter()
        for _ in llm.stream(ids(draw, prompt), max_tokens=output, ignore_stop=True):
            time.sleep(pause_s * draw.uniform(0.8, 1.2))
        return time.perf_counter() - began_s

    return ask


def returning(count: int, prompt: int, output: int, rounds: int) -> Ask:
    """`count` conversations in turn, more than the pool holds: their beginnings go to the host and come back."""

    def ask(llm: LLM, draw: random.Random) -> float:
        prompts = [ids(draw, prompt) for _ in range(count)]
        for one in prompts:
            llm.generate(one, max_tokens=2, ignore_stop=True)
        llm.account(reset=True)
        began_s = time.perf_counter()
        for _ in range(rounds):
            for one in prompts:
                llm.generate((*one, *ids(draw, 4)), max_tokens=output, ignore_stop=True)
        return time.perf_counter() - began_s

    return ask


def thinking(count: int, prompt: int, output: int, think_s: float) -> Ask:
    """One user in a closed loop."""

    def ask(llm: LLM, draw: random.Random) -> float:
        began_s = time.perf_counter()
        for number in range(count):
            if number:
                time.sleep(think_s * draw.uniform(0.8, 1.2))
            llm.generate(ids(draw, prompt), max_tokens=output, ignore_stop=True)
        return time.perf_counter() - began_s

    return ask


def arriving(factor: float, count: int, prompt: int, output: int) -> Ask:
    """At `factor` times what the engine can do, which is measured first."""

    def ask(llm: LLM, draw: random.Random) -> float:
        began_s = time.perf_counter()
        replay(llm, [Job(ids(draw, prompt), output) for _ in range(8)])
        per_s = factor * 8 / (time.perf_counter() - began_s)
        llm.account(reset=True)
        at_s, jobs = 0.0, []
        for _ in range(count):
            jobs.append(Job(ids(draw, prompt), output, at_s))
            at_s += draw.expovariate(per_s)
        began_s = time.perf_counter()
        replay(llm, jobs)
        return time.perf_counter() - began_s

    return ask


def shape(**fields: Any) -> str:
    """`random:` of a written shape: times are real, words are not."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64,
        "vocab_size": 8192, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    } | fields  # fmt: skip
    path = (
        Path(tempfile.gettempdir()) / f"ridgeline-plant-{zlib.crc32(json.dumps(config, sort_keys=True).encode())}.json"
    )
    path.write_text(json.dumps(config))
    return f"random:{path}"


def kept(count: int, context: int, **options: Any) -> Level:
    """Many heads of keys and values, little else."""
    asked = {"kv_bytes": 1 << 30, "max_sequences": 16, "context": context + 128, "step_tokens": 1024, "prefix": False}
    return Level(after_prompts(count, context, 48), shape(), asked | options)


def capacity(share: float, output: int) -> Level:
    """Memory for `share` of what 16 requests of 64 + output tokens need on SmolLM2 (23,040 bytes a token)."""
    need = 16 * (64 + 8 + output) * 23_040
    return Level(burst(16, 64, output), options={"kv_bytes": int(share * need), "max_sequences": 16, "prefix": False})


def kinds() -> dict[str, list[Level]]:
    """By cause; a level's place in its list is its number."""
    penalties = {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "frequency_penalty": 0.2, "logprobs": 20}
    wide = shape(vocab_size=262144, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4)
    tuned = {"activations": "auto"}
    return {
        "weight_bandwidth": [
            Level(burst(1, 8, 40), options={"weights": "f32"}), Level(burst(2, 8, 32), options={"weights": "f32"}),
            Level(burst(1, 8, 64), options={"weights": "bf16"}), Level(burst(1, 48, 40), options={"weights": "bf16"}),
            Level(burst(1, 96, 64), options={"weights": "f32"}),
        ],
        "kv_bandwidth": [kept(8, 1024), kept(4, 2048), kept(12, 768), kept(8, 1024, kv="f32"), kept(6, 1536)],
        "compute": [
            Level(burst(1, 512, 1)), Level(burst(1, 768, 4)), Level(burst(1, 1024, 8)), Level(burst(4, 256, 4)),
            Level(burst(2, 512, 2), options={"weights": "bf16"}),
        ],
        "kernel": [
            Level(burst(1, 16, 24), options={"reference": ("attend",)}),
            Level(burst(1, 16, 32), options={"isa": "plain"}),
            Level(burst(1, 16, 16), options={"reference": ("down",)}),
            Level(burst(1, 16, 16), options={"reference": ("qkv",)}),
            Level(burst(1, 256, 4), options={"isa": "plain"}),
        ],
        "dispatch": [
            Level(burst(1, 16, 48), worker={"wait_s": wait_s}) for wait_s in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4)
        ],
        "host": [Level(burst(1, 16, 48), worker={"busy_s": busy_s}) for busy_s in (0.003, 0.004, 0.006, 0.01, 0.02)],
        "tokenizer": [Level(texts(3, 24, 16), text_s=text_s) for text_s in (0.1, 0.15, 0.2, 0.4, 0.8)],
        "sampling": [
            Level(sampled(1, 16, 32, **penalties), wide), Level(sampled(4, 16, 24, **penalties), wide),
            Level(sampled(8, 16, 16, **penalties), wide), Level(sampled(8, 32, 16, temperature=1.0, top_p=0.9), wide),
            Level(sampled(16, 16, 12, **penalties), wide),
        ],
        "queue": [
            Level(arriving(factor, 24, 32, 20), options={"max_sequences": 4}) for factor in (2.0, 2.5, 3.0, 4.0, 6.0)
        ],
        "kv_capacity": [capacity(1 / 4, 96), capacity(1 / 6, 96), capacity(1 / 8, 96), capacity(1 / 8, 128),
                        capacity(1 / 12, 128)],
        "threads": [
            Level(burst(1, 16, 48), options={"threads": 8}), Level(burst(1, 16, 48), hogs=2),
            Level(burst(1, 16, 48), options={"threads": 2}, prefix=("taskset", "-c", "0")),
            Level(burst(1, 16, 48), options={"threads": 6}), Level(burst(1, 64, 48), hogs=4),
        ],
        "memory_system": [Level(burst(1, 16, 12), worker={"dropped": share}) for share in (0.1, 0.2, 0.4, 0.7, 1.0)],
        "underload": [Level(thinking(4, 24, 12, think_s)) for think_s in (0.15, 0.25, 0.4, 0.6, 1.0)],
        "client": [Level(reading(16, 40, pause_s)) for pause_s in (0.025, 0.035, 0.05, 0.07, 0.1)],
        "link": [
            Level(returning(3, 256, 12, 2), options=HOST_TIER, worker={"block_s": block_s})
            for block_s in (0.002, 0.003, 0.005, 0.008, 0.015)
        ],
        "clock": [Level(burst(1, 16, 48), options=tuned, scale=scale) for scale in (1.6, 1.8, 2.0, 2.5, 3.0)],
        "healthy": [
            Level(again(burst(1, 16, 96)), options=tuned), Level(again(burst(1, 64, 128)), options=tuned),
            Level(again(burst(2, 32, 96)), options=tuned), Level(again(burst(4, 32, 64)), options=tuned),
            Level(again(burst(8, 32, 48)), options=tuned), Level(again(burst(1, 128, 128)), options=tuned),
            Level(again(burst(1, 32, 48)), QWEN, tuned), Level(again(burst(2, 32, 32)), QWEN, tuned),
            Level(again(burst(1, 32, 64)), GEMMA, tuned), Level(again(burst(4, 128, 48)), options=tuned),
        ],
    }  # fmt: skip

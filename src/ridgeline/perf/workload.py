"""Workloads are data: who asks what, when. Read from JSON lines, or made from a name and a seed.

Refuses keys it does not know, with the line's number: a typing error must not become another workload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import UserError

NAMES = ("W1", "W2-<n>", "W3", "W4", "ladder")
LOWEST_ID, HIGHEST_ID = 1000, 30_000  # ids of made prompts: no special tokens, in every vocabulary we know
LADDER_SEED = 2

Encode = Callable[[str], Sequence[int]]


class Job(msgspec.Struct, frozen=True):
    """One request of a workload. arrival_s: after the start; 0 for all is a burst."""

    prompt: tuple[int, ...]
    output_tokens: int
    arrival_s: float = 0.0
    priority: int = 0


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    output_tokens: int
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    arrival_s: float = 0.0
    priority: int = 0


def read_workload(path: Path, encode: Encode) -> list[Job]:
    """A file of JSON lines {"prompt" | "prompt_ids", "output_tokens", "arrival_s"?, "priority"?}.

    Blank lines are skipped. UserError with the line's number for anything else.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read the workload {path}: {error.strerror}. Give JSON lines, or one of {', '.join(NAMES)}."
        ) from error
    jobs = [_job(line, f"{path}, line {number}", encode) for number, line in enumerate(lines, 1) if line.strip()]
    if not jobs:
        raise UserError(f"{path} holds no request; one line is one request.")
    return jobs


def _job(line: bytes, where: str, encode: Encode) -> Job:
    try:
        read = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        raise UserError(f"{where}: {error}.") from error
    if (read.prompt is None) == (read.prompt_ids is None):
        raise UserError(f'{where}: give either "prompt" (text) or "prompt_ids" (token ids).')
    ids = tuple(encode(read.prompt)) if read.prompt is not None else read.prompt_ids or ()
    if not ids:
        raise UserError(f"{where}: the prompt is empty; a request needs at least one token.")
    if read.output_tokens < 1:
        raise UserError(f"{where}: output_tokens is {read.output_tokens}; it must be at least 1.")
    if not (math.isfinite(read.arrival_s) and read.arrival_s >= 0):
        raise UserError(f"{where}: arrival_s is {read.arrival_s}; it must be a time of at least 0 seconds.")
    return Job(ids, read.output_tokens, read.arrival_s, read.priority)


def named_workload(name: str, vocabulary: int, repetition: int = 0) -> list[Job] | None:
    """W1, W2-<n>, W3, W4 of PEERS, or the ladder's; None for another name. Lengths are the same in every repetition,
    token ids differ, so that nothing kept from one repetition helps the next."""
    salted = np.random.default_rng([repetition, *name.encode()])
    top = min(HIGHEST_ID, vocabulary)
    low = min(LOWEST_ID, top // 2)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(salted.integers(low, top, length).tolist())

    if name == "W1":
        return [Job(ids(128), 128)]
    if name.startswith("W2-") and name[3:].isdecimal() and int(name[3:]) > 0:
        return [Job(ids(int(name[3:])), 1)]
    if name == "W3":
        prompts, outputs = _lengths(0, 64, (200, 0.8, 16, 1024), (100, 0.7, 8, 256))
        return [Job(ids(prompt), output) for prompt, output in zip(prompts, outputs, strict=True)]
    if name == "W4":
        shared = ids(512)
        return [Job(shared + ids(32), 32) for _ in range(64)]
    if name == "ladder":
        prompts, outputs = _lengths(LADDER_SEED, 12, (96, 0.8, 16, 384), (32, 0.6, 8, 64))
        return [Job(ids(prompt), output) for prompt, output in zip(prompts, outputs, strict=True)]
    return None


Spread = tuple[float, float, int, int]  # mean, sigma of the logarithm, least, most


def _lengths(seed: int, count: int, prompt: Spread, output: Spread) -> tuple[list[int], list[int]]:
    """Lognormal lengths with the given means, rounded and cut to their range."""
    random = np.random.default_rng(seed)

    def draw(mean: float, sigma: float, least: int, most: int) -> list[int]:
        values: npt.NDArray[Any] = random.lognormal(math.log(mean) - sigma**2 / 2, sigma, count)
        return np.clip(np.rint(values), least, most).astype(int).tolist()  # type: ignore[no-any-return]

    return draw(*prompt), draw(*output)

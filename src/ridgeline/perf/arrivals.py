"""Arrivals: when requests are meant to come, and how long they are: Poisson, gamma bursts, a trace, or clients in turn.

Only intentions, made before the run from a seed; who sends them is http_load.py. Prompts are words, since ids of one
tokenizer mean nothing to another server; blocks that a trace says are shared become the same words.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ridgeline.kit.errors import UserError

COMMON = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house"
)
WORDS = tuple(COMMON.split())
SHARED_TOKENS = 512  # of a block of a trace that names its blocks
MOST_BYTES = 1 << 28


class Ask(msgspec.Struct, frozen=True):
    """One request. arrival_s: after the start; None: when the one before it of the same client has ended."""

    prompt: str
    output_tokens: int
    arrival_s: float | None = 0.0


class Lengths(msgspec.Struct, frozen=True):
    """Tokens, about: a word of WORDS is one token in most vocabularies."""

    prompt: int = 128
    output: int = 64


def poisson(rate: float, count: int, lengths: Lengths, seed: int = 0, cv: float = 1.0) -> list[Ask]:
    """`count` requests, `rate` a second. cv: spread of the gaps; 1: Poisson, above: bursts (gamma), 0: a clock."""
    if rate <= 0 or count < 1 or cv < 0:
        raise UserError(f"a rate of {rate:g} with {count} requests and cv {cv:g} is no load; all must be positive.")
    random = np.random.default_rng(seed)
    gaps = np.full(count, 1 / rate) if cv == 0 else random.gamma(1 / cv**2, cv**2 / rate, count)
    return [
        Ask(words([seed, number], lengths.prompt), lengths.output, float(at_s))
        for number, at_s in enumerate(np.cumsum(gaps) - gaps[0])
    ]


def in_turn(count: int, lengths: Lengths, seed: int = 0) -> list[Ask]:
    """For clients that each ask again when they were answered."""
    return [Ask(words([seed, number], lengths.prompt), lengths.output, None) for number in range(count)]


def words(key: Sequence[int], count: int) -> str:
    """So many words, the same for the same key, and unlike from the first one on for another."""
    picks = np.random.default_rng([abs(part) for part in key]).integers(0, len(WORDS), max(count, 1))
    return " ".join(WORDS[pick] for pick in picks)


def read_trace(path: Path, count: int | None, speed: float = 1.0, most_tokens: int | None = None) -> list[Ask]:
    """A trace of lengths and arrivals: .csv or .jsonl, also .gz (columns of Azure, Mooncake and plain ones).

    speed: 2 plays it twice as fast. most_tokens: longer ones are left out. UserError names the line that is wrong.
    """
    rows = itertools.islice(_rows(path), count)
    asks, first_s = [], None
    for number, row in enumerate(rows, 1):
        try:
            at_s, prompt, output, blocks = _read(row)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}, row {number}: {error} is missing or wrong. A row has an arrival (timestamp in ms, TIMESTAMP "
                "or arrival_s), a prompt (input_length, ContextTokens, prompt_tokens) and an output length."
            ) from None
        first_s = at_s if first_s is None else first_s
        if most_tokens is not None and prompt + output > most_tokens:
            continue
        parts = [words([1, block], SHARED_TOKENS) for block in blocks[: prompt // SHARED_TOKENS]]
        parts.append(words([2, number], prompt - SHARED_TOKENS * len(parts)))
        asks.append(Ask(" ".join(parts), max(output, 1), max(0.0, at_s - first_s) / speed))
    if not asks:
        raise UserError(f"{path} holds no request that could be sent.")
    return asks


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read the trace {path}: {error}.") from error
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} is larger than {MOST_BYTES >> 20} MiB when unpacked; cut it.")
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    if lines and lines[0].lstrip().startswith("{"):
        for number, line in enumerate(lines, 1):
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise UserError(f"{path}, line {number}: {error}.") from None
        return
    names = lines[0].split(",") if lines else []
    for line in lines[1:]:
        yield dict(zip(names, line.split(","), strict=False))


def _read(row: dict[str, Any]) -> tuple[float, int, int, list[int]]:
    """(seconds, prompt tokens, output tokens, shared blocks) whatever the columns are called."""
    if "TIMESTAMP" in row:
        at_s = float(np.datetime64(str(row["TIMESTAMP"]).strip(), "ns").astype(np.int64) * 1e-9)
    elif "timestamp" in row:
        at_s = float(row["timestamp"]) / 1000
    else:
        at_s = float(row["arrival_s"])
    prompt, output = _first(row, PROMPTS), _first(row, OUTPUTS)
    if prompt < 1 or output < 0:
        raise ValueError(f"a length of {min(prompt, output)}")
    return at_s, prompt, output, [int(block) for block in row.get("hash_ids", ())]


PROMPTS = ("ContextTokens", "input_length", "prompt_tokens", "num_prefill_tokens")
OUTPUTS = ("GeneratedTokens", "output_length", "output_tokens", "num_decode_tokens")


def _first(row: dict[str, Any], names: tuple[str, ...]) -> int:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise KeyError(names[0])
    return int(float(row[name]))

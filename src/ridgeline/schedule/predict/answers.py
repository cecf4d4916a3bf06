"""Answers: what a model said to many prompts, seen every few tokens: hidden states, and how much was still to come.

Whole requests belong to one part (train, validation, test), by a hash of their prompts: nothing of a tested answer is
learned from. An answer that was cut short would have had at least the tokens it has: to drop it would keep only short
ones, and to take its length for a wish would teach that answers end where the asker's patience does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ridgeline.kit.errors import UserError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
PARTS = ("train", "validation", "test")
SHARES = (70, 85, 100)  # per cent, up to the end of each part
FIELDS = ("states", "at", "request", "lengths", "prompt_tokens", "kinds", "part", "is_cut", "most")


def part_of(prompt: str) -> int:
    """Which of PARTS a prompt belongs to: 70, 15 and 15 of 100."""
    place = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "little") % 100
    return next(part for part, end in enumerate(SHARES) if place < end)


@dataclass(frozen=True, slots=True)
class Answers:
    """n looks at answers to r requests. states [n, width]; at [n]: output tokens there were; request [n]: whose it is;
    lengths, prompt_tokens, kinds, part, is_cut, most [r]; most: tokens it was allowed."""

    states: Floats
    at: Ints
    request: Ints
    lengths: Ints
    prompt_tokens: Ints
    kinds: Ints
    part: Ints
    is_cut: Ints
    most: Ints

    @property
    def remaining(self) -> Floats:
        """[n] output tokens still to come."""
        return (self.lengths[self.request] - self.at).astype(np.float32)

    @property
    def room(self) -> Floats:
        """[n] tokens that it was still allowed: no prediction need say more."""
        return (self.most[self.request] - self.at).astype(np.float32)

    @property
    def total(self) -> int:
        return len(self.lengths)

    def looks(self, part: str) -> npt.NDArray[np.bool_]:
        """[n]: those at requests of one of PARTS."""
        return np.asarray(self.part[self.request] == PARTS.index(part))

    def save(self, path: Path) -> None:
        """As safetensors; states in half precision, which is far finer than they are predictive."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in FIELDS}
        arrays["states"] = arrays["states"].astype(np.float16)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, str(path))


def read_answers(path: Path) -> Answers:
    """UserError for a file that is none."""
    try:
        arrays = load_file(str(path))
        states = arrays.pop("states").astype(np.float32)
        whole = {name: arrays[name].astype(np.int64) for name in FIELDS[1:]}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path} holds no answers: {error}. Make them again with `ridgeline learn`.") from error
    return Answers(states, **whole)


@dataclass(slots=True)
class Seen:
    """One answer as it comes."""

    prompt: str
    kind: int
    prompt_tokens: int
    looks: list[tuple[int, bytes]]  # output tokens there were, state
    most: int
    length: int = 0
    is_cut: bool = False


def gather(seen: Many[Seen]) -> Answers:
    """All answers that have ended, as arrays."""
    looks = [(index, at, state) for index, one in enumerate(seen) for at, state in one.looks if at < one.length]
    states = np.stack([np.frombuffer(state, "<f4") for _, _, state in looks])
    columns = {
        "lengths": [one.length for one in seen], "prompt_tokens": [one.prompt_tokens for one in seen],
        "kinds": [one.kind for one in seen], "part": [part_of(one.prompt) for one in seen],
        "is_cut": [int(one.is_cut) for one in seen], "most": [one.most for one in seen],
        "request": [index for index, _, _ in looks], "at": [at for _, at, _ in looks],
    }  # fmt: skip
    return Answers(states.astype(np.float32), **{name: np.array(column, np.int64) for name, column in columns.items()})

"""Quality of a model's numbers on a text: perplexity, and KL divergence from a parent (the same tokens, both in full).

Runs an engine's own runner and memory window by window: what a storage rounds and a retention drops is missing here as
it is in service; no scheduler is in the way, and all logits of a row are seen. Windows are independent; the first token
of each has nothing before it and is not scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from pathlib import Path
from pydoc_data.topics import topics
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.run.runner import Runner
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Request, Sampling
from ridgeline.state.sequence import Sequence

WINDOW = 512
ROWS = 128  # scored in one step: their logits are held in memory, for two models at a time
Floats = npt.NDArray[np.float32]


class Quality(msgspec.Struct, frozen=True):
    """kl: mean over scored tokens of KL(parent ‖ model), in nats; agreement: share with the same likeliest token."""

    text: str
    windows: int
    tokens: int  # scored
    text_bytes: int  # of the scored tokens
    perplexity: float
    bits_per_byte: float
    parent_perplexity: float | None = None
    kl: float | None = None
    kl_p99: float | None = None
    agreement: float | None = None


def named_text(name: str) -> str:
    """A file's text, or that of the name "pydoc": the language reference of python. UserError if neither."""
    if name == "pydoc":
        return "\n".join(topics[topic] for topic in sorted(topics))
    try:
        return Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the text {name!r}: {error}. Give a UTF-8 file, or the name pydoc.") from error


def windows_of(ids: Many[int], tokens: int, bos: int | None = None, length: int = WINDOW) -> list[tuple[int, ...]]:
    """Whole windows of `length` tokens that hold `tokens` scored ones or more, each begun by `bos` if given. UserError:
    too short."""
    fresh = length if bos is None else length - 1
    scored = length - 1
    wanted = -(-tokens // scored)
    have = len(ids) // fresh
    if have < wanted:
        raise UserError(
            f"the text has {len(ids)} tokens, {have} windows of {length}; {tokens} scored tokens need {wanted}. "
            f"Give a longer text, or --tokens {have * scored}."
        )
    head = () if bos is None else (bos,)
    return [(*head, *ids[i * fresh : (i + 1) * fresh]) for i in range(wanted)]


class Scorer:
    """One model, run window by window of at most `length` tokens. held_blocks: of its pools, at the end of the last."""

    def __init__(self, config: EngineConfig, length: int = WINDOW) -> None:
        config = msgspec.structs.replace(
            config, context=length, max_sequences=1, step_tokens=ROWS, step_logit_rows=ROWS, prefix=False
        )
        self.engine: Engine = build(config)
        if not isinstance(self.engine.runner, Runner):
            raise InvariantError("quality needs the real runner: nothing else has logits")
        self._runner = self.engine.runner
        self.held_blocks: tuple[int, ...] = ()
        self._memory = self.engine.scheduler.memory
        self._count = 0

    @property
    def vocabulary(self) -> int:
        return self.engine.facts.vocabulary

    def logits(self, window: Many[int]) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """(targets [rows], logits [rows, vocabulary]) of successive pieces of a window."""
        memory, self._count = self._memory, self._count + 1
        sequence = Sequence(self._count, Request(str(self._count), tuple(window), 0), 0.0, list(window))
        start = memory.admit(sequence) or 0
        pieces: list[tuple[npt.NDArray[np.int64], Floats]] = []
        while start < len(window):
            count = memory.longest(start, min(ROWS - start % ROWS, len(window) - start))
            if not memory.reserve(sequence, start, count):
                raise InvariantError("a window does not fit into a pool made for it")
            targets = np.asarray(window[start + 1 : start + 1 + count], np.int64)
            rows = tuple(
                LogitRow(offset, start + offset + 1, Sampling(), target=int(target))
                for offset, target in enumerate(targets)
            )
            entry = Entry(
                sequence.id, start, tuple(window[start : start + count]), memory.blocks_of(sequence), rows,
                slots=memory.slots_of(sequence, start), state=memory.state_of(sequence),
            )  # fmt: skip
            self._runner.collect(self._runner.submit(StepPlan((entry,), transfers=memory.transfers())))
            start += count
            memory.advance(sequence, start)
            pieces.append((targets, self._runner.last_logits(len(targets))))
            if start == len(window):  # before the last yield: nobody need ask for more
                self.held_blocks = tuple(int((table >= 0).sum()) for table in memory.blocks_of(sequence))
                memory.release(sequence, start)
            if start % ROWS == 0 or start == len(window):
                yield np.concatenate([one for one, _ in pieces]), np.concatenate([two for _, two in pieces])
                pieces.clear()

    def close(self) -> None:
        self.engine.close()


class Scores(Protocol):
    """What a Scorer does; bench/kv_quality.py has one that remembers."""

    @property
    def vocabulary(self) -> int: ...
    def logits(self, window: Many[int], /) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]: ...


def measure_quality(
    scorer: Scores, parent: Scores | None, windows: Many[Many[int]], bytes_of: Callable[[int], int], text: str,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Quality:  # fmt: skip
    """Perplexity of `scorer` on the windows and, with a parent, how far it is from it. progress: tokens just scored."""
    if parent is not None and parent.vocabulary != scorer.vocabulary:
        raise UserError(
            f"the parent has {parent.vocabulary} tokens in its vocabulary, the model {scorer.vocabulary}; KL "
            "divergence needs the same vocabulary. Compare perplexity instead (without --against)."
        )
    nats, parent_nats, kl, same, text_bytes = 0.0, 0.0, [], 0, 0
    for window in windows:
        others = iter(()) if parent is None else parent.logits(window)
        for targets, logits in scorer.logits(window):
            own = _log_softmax(logits)
            nats -= _taken(own, targets)
            text_bytes += sum(bytes_of(int(token)) for token in targets)
            if parent is not None:
                reference = _log_softmax(next(others)[1])
                parent_nats -= _taken(reference, targets)
                kl.append(np.einsum("rv,rv->r", np.exp(reference), reference - own, dtype=np.float64))
                same += int((own.argmax(-1) == reference.argmax(-1)).sum())
            progress(len(targets))
    tokens = sum(len(window) - 1 for window in windows)
    divergence = np.concatenate(kl) if kl else None
    return Quality(
        text, len(windows), tokens, text_bytes, math.exp(nats / tokens), nats / math.log(2) / max(1, text_bytes),
        None if parent is None else math.exp(parent_nats / tokens),
        None if divergence is None else float(divergence.mean()),
        None if divergence is None else float(np.quantile(divergence, 0.99, method="inverted_cdf")),
        None if parent is None else same / tokens,
    )  # fmt: skip


def _log_softmax(logits: Floats) -> Floats:
    """[rows, vocabulary], in f32 with the sum in f64."""
    shifted = logits - logits.max(-1, keepdims=True)
    total = np.log(np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return np.asarray(shifted - total, np.float32)


def _taken(logprobs: Floats, targets: npt.NDArray[np.int64]) -> float:
    return float(logprobs[np.arange(len(targets)), targets].sum(dtype=np.float64))

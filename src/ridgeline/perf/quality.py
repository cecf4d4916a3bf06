"""Quality: perplexity of a text and KL divergence from a parent, over full distributions (natural logarithms).

Runs Programs directly, window by window, every position scored; no sampling, no server. Slow and exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.kit.clock import WallClock
from ridgeline.kit.errors import UserError
from ridgeline.memory.kv_pool import KvPool
from ridgeline.memory.storage.storage import BLOCK_TOKENS, STORAGES
from ridgeline.models.load import load, record
from ridgeline.run.arena import StepLimits
from ridgeline.run.bind import bind
from ridgeline.run.runner import Runner
from ridgeline.state.plan import Entry, LogitRow, StepPlan
from ridgeline.state.request import Sampling

WINDOW = 512  # tokens; each window starts without memory of the one before
STRIDE = 128  # positions scored at a time: bounds the memory of full distributions


class Quality(msgspec.Struct, frozen=True):
    """kl: mean KL(parent || model) per position in nats, None without a parent. same_top: share of equal argmax."""

    tokens: int
    scored: int
    nats_per_token: float
    perplexity: float
    bits_per_character: float
    parent_perplexity: float | None = None
    kl: float | None = None
    kl_p99: float | None = None
    same_top: float | None = None
    largest_logit_difference: float | None = None
    largest_logit: float | None = None


class Scorer:
    """One model as a function from a window of ids to logits."""

    def __init__(self, model: str, *, weights: str, kv: str, body: str, threads: int) -> None:
        self.loaded = load(model, weights=weights)
        spec, storage = self.loaded.spec, STORAGES.get(kv)
        pool = KvPool(
            storage, layers=spec.layers, kv_heads=spec.kv_heads, head_dim=spec.head_dim, blocks=WINDOW // BLOCK_TOKENS
        )
        limits = StepLimits(STRIDE, STRIDE, 1, WINDOW)
        bound = bind(record(self.loaded, storage), body=body)
        self._runner = Runner(bound, pool, limits=limits, threads=threads, clock=WallClock())
        self._blocks = np.arange(WINDOW // BLOCK_TOKENS, dtype=np.int32)

    def logits(self, window: Sequence[int], start: int, stop: int) -> npt.NDArray[np.float32]:
        """[stop - start, vocabulary] of positions start..stop-1; call in order from 0."""
        rows = tuple(LogitRow(i - start, i + 1, Sampling(), target=0) for i in range(start, stop))
        plan = StepPlan((Entry(0, start, tuple(window[start:stop]), self._blocks, rows),))
        self._runner.collect(self._runner.submit(plan))
        return self._runner.last_logits(stop - start)

    def close(self) -> None:
        self._runner.close()


def evaluate(
    model: Scorer, parent: Scorer | None, ids: Sequence[int], characters: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Quality:  # fmt: skip
    """Score `ids` in windows; `characters`: of the text they came from."""
    if len(ids) < 2:
        raise UserError(f"a text of {len(ids)} token(s) cannot be scored; give a longer one.")
    if parent is not None and parent.loaded.spec.vocabulary != model.loaded.spec.vocabulary:
        raise UserError("KL needs the same vocabulary in both models.")
    nats, parent_nats, same, far, top = 0.0, 0.0, 0, 0.0, 0.0
    divergences: list[npt.NDArray[np.float64]] = []
    scored = 0
    for begin in range(0, len(ids), WINDOW):
        window = ids[begin : begin + WINDOW]
        for start in range(0, len(window), STRIDE):
            stop = min(start + STRIDE, len(window))
            targets = np.array(window[start + 1 : stop + 1])
            raw = model.logits(window, start, stop)
            rows = np.arange(len(targets))
            ours = _log_softmax(raw)
            nats -= float(ours[rows, targets].sum(dtype=np.float64))
            scored += len(targets)
            if parent is not None:
                wanted = parent.logits(window, start, stop)
                theirs = _log_softmax(wanted)
                parent_nats -= float(theirs[rows, targets].sum(dtype=np.float64))
                divergences.append((np.exp(theirs) * (theirs - ours)).sum(-1, dtype=np.float64))
                same += int((raw.argmax(-1) == wanted.argmax(-1)).sum())
                far = max(far, float(np.abs(raw - wanted).max()))
                top = max(top, float(np.abs(wanted).max()))
            progress(stop - start)
    mean = nats / scored
    bits = nats / math.log(2) / characters
    quality = Quality(len(ids), scored, mean, math.exp(mean), bits)
    if parent is None:
        return quality
    kl = np.maximum(np.concatenate(divergences), 0.0)
    return msgspec.structs.replace(
        quality, parent_perplexity=math.exp(parent_nats / scored), kl=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)), same_top=same / len(kl), largest_logit_difference=far, largest_logit=top,
    )  # fmt: skip


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)

"""What storages and retentions cost in quality, beside the bytes they keep (F15, C9, C10, E7): perplexity and KL
divergence from bf16 with everything kept, on windows of 2k to 8k tokens of a named text (pydoc: Python's language
reference).

Bytes are the allocator's at the end of a window, checked against the closed form of kept tokens in whole blocks.
python bench/kv_quality.py smollm2-135m --lengths 2048 8192 --tokens 4000 8000     last line: one JSON document
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt

from ridgeline.engine.config import EngineConfig
from ridgeline.memory.spans import kept_blocks
from ridgeline.models.load import describe
from ridgeline.perf.quality import Scorer, measure_quality, named_text, windows_of
from ridgeline.run.machine import fingerprint

STORAGES = ("bf16", "int8", "int4", "hack", "hack:group=32")
RETENTIONS = ("all", "sinks:4+window:508", "window:512", "sinks:4+h2o:252+window:256")
ROW = "{:>6} {:<24} {:<28} {:>10} {:>8} {:>10} {:>9} {:>9} {:>7} {:>7}"


def kept_bytes(scorer: Scorer, length: int) -> int:
    """Of the window just scored. AssertionError unless table and closed form agree."""
    memory, pools = scorer.engine.scheduler.memory, scorer.engine.runner.pools  # type: ignore[attr-defined]
    closed = tuple(kept_blocks(reach, length) for reach in memory.reaches)  # type: ignore[attr-defined]
    if closed != scorer.held_blocks:
        raise AssertionError(f"closed form {closed}, tables {scorer.held_blocks}")
    return sum(blocks * pool.nbytes // pool.blocks for blocks, pool in zip(closed, pools, strict=True))


class Remembered:
    """The parent's logits of every window, computed once and kept: 200 KB a token of SmolLM2."""

    def __init__(self, parent: Scorer) -> None:
        self.vocabulary, self._parent = parent.vocabulary, parent
        self._pieces: dict[tuple[int, ...], list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]] = {}

    def logits(self, window: Sequence[int]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        if tuple(window) not in self._pieces:
            self._pieces[tuple(window)] = list(self._parent.logits(window))
        return iter(self._pieces[tuple(window)])


def measure(asked: argparse.Namespace, length: int, tokens: int) -> list[dict[str, object]]:
    """One row for each storage under each retention asked for, at windows of `length` tokens."""
    model, text, threads = asked.model, asked.text, asked.threads
    described = describe(model)
    tokenizer = described.tokenizer()
    if tokenizer is None:
        raise SystemExit(f"{model} has no tokenizer")
    bos = described.spec.bos if described.spec.add_bos else None
    windows = windows_of(tokenizer.encode(named_text(text), add_bos=False), tokens, bos, length)
    rows: list[dict[str, object]] = []
    with closing(Scorer(EngineConfig(model, kv="bf16", threads=threads), length)) as whole:
        parent, parent_bytes = Remembered(whole), 0
        for keep, kv in itertools.product(asked.keep, asked.kv):
            if (kv, keep) == ("bf16", "all") or (kv.startswith("hack") and keep != "all"):
                continue  # that is the parent; hack keeps everything
            began = time.perf_counter()
            with closing(Scorer(EngineConfig(model, kv=kv, keep=keep, threads=threads), length)) as scorer:
                quality = measure_quality(scorer, parent, windows, lambda token: len(tokenizer.piece(token)), text)
                parent_bytes = parent_bytes or kept_bytes(whole, length)
                row = {
                    "length": length, "kv": kv, "keep": keep, "tokens": quality.tokens,
                    "kv_bytes": kept_bytes(scorer, length), "parent_kv_bytes": parent_bytes,
                    "perplexity": quality.perplexity, "parent_perplexity": quality.parent_perplexity,
                    "kl": quality.kl, "kl_p99": quality.kl_p99, "agreement": quality.agreement,
                    "seconds": time.perf_counter() - began,
                }  # fmt: skip
            rows.append(row)
            print(ROW.format(
                length, kv, keep, f"{row['kv_bytes'] / 2**20:.2f}M",  # type: ignore[operator]
                f"{row['kv_bytes'] / row['parent_kv_bytes']:.3f}",  # type: ignore[operator]
                f"{quality.perplexity:.3f}", f"{quality.perplexity / (quality.parent_perplexity or 1) - 1:+.2%}",
                f"{quality.kl:.5f}", f"{quality.agreement:.1%}", f"{row['seconds']:.0f}s",
            ), flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4000, 8000], help="scored at least, for each length")
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv", nargs="+", default=list(STORAGES))
    parser.add_argument("--keep", nargs="+", default=list(RETENTIONS))
    asked = parser.parse_args()
    print(ROW.format("length", "kv", "keep", "KV bytes", "share", "perplexity", "change", "KL nats", "same", "took"))
    rows = []
    for length, tokens in zip(asked.lengths, asked.tokens, strict=True):
        rows += measure(asked, length, tokens)
    document = {"bench": "kv_quality", "model": asked.model, "text": asked.text, "rows": rows}
    print(json.dumps(document | {"cpu": fingerprint().cpu, "cores": fingerprint().cores}))


if __name__ == "__main__":
    main()

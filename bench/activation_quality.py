"""What rounding activations costs in quality, by threshold (D10): perplexity, KL divergence and the largest change of a
logit against the same weights in f32.   python bench/activation_quality.py smollm2-135m [--tokens 2000]

KV is f32 on both sides, so that only activations differ. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.engine.config import EngineConfig
from ridgeline.models.load import describe
from ridgeline.perf.quality import WINDOW, Scorer, named_text, windows_of
from ridgeline.run.activations import outlier_of
from ridgeline.run.machine import fingerprint

CHOICES = "auto,auto:outlier=4,auto:outlier=8,auto:outlier=12,auto:outlier=16,auto:outlier=24,int8,int16"
Floats = npt.NDArray[np.float32]
Pieces = list[tuple[npt.NDArray[np.int64], Floats]]


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)


def score(scorer: Scorer, windows: list[tuple[int, ...]]) -> Pieces:
    """(targets, logits) of every piece; copies, since the runner writes over its own."""
    return [(targets, logits.copy()) for window in windows for targets, logits in scorer.logits(window)]


def compare(parent: Pieces, model: Pieces) -> dict[str, float]:
    nats, parent_nats, kl, most, largest, same, tokens = 0.0, 0.0, [], 0.0, 0.0, 0, 0
    for (targets, reference), (_, logits) in zip(parent, model, strict=True):
        p, q, rows = log_softmax(reference), log_softmax(logits), np.arange(len(targets))
        parent_nats -= float(p[rows, targets].sum(dtype=np.float64))
        nats -= float(q[rows, targets].sum(dtype=np.float64))
        kl.append(np.einsum("rv,rv->r", np.exp(p), p - q, dtype=np.float64))
        most, largest = max(most, float(np.abs(logits - reference).max())), max(largest, float(np.abs(reference).max()))
        same, tokens = same + int((p.argmax(-1) == q.argmax(-1)).sum()), tokens + len(targets)
    every = np.concatenate(kl)
    return {
        "perplexity": math.exp(nats / tokens), "change": math.exp((nats - parent_nats) / tokens) - 1,
        "kl": float(every.mean()), "kl_p99": float(np.quantile(every, 0.99)), "largest_change": most / largest,
        "same_best": same / tokens,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--choices", default=CHOICES)
    parser.add_argument("--kv", default="f32", help="of the rounded model; the parent's is f32")
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    described = describe(asked.model)
    tokenizer = described.tokenizer()
    if tokenizer is None:
        raise SystemExit(f"{asked.model} has no tokenizer")
    bos = described.spec.bos if described.spec.add_bos else None
    windows = windows_of(tokenizer.encode(named_text(asked.text), add_bos=False), asked.tokens, bos, WINDOW)
    common: dict[str, Any] = {"threads": asked.threads, "isa": asked.isa}
    with closing(Scorer(EngineConfig(asked.model, weights="f32", kv="f32", **common))) as scorer:
        parent = score(scorer, windows)
    print(f"{asked.model}, {sum(len(targets) for targets, _ in parent)} tokens; parent: its weights in f32")
    rows = []
    for choice in asked.choices.split(","):
        outlier_of(choice, "")
        config = EngineConfig(asked.model, kv=asked.kv, activations=choice, **common)
        with closing(Scorer(config)) as scorer:
            row = compare(parent, score(scorer, windows))
        rows.append({"activations": choice} | row)
        print(
            f"{choice:<16} perplexity {row['change']:+.3%}  KL {row['kl']:.6f} (p99 {row['kl_p99']:.4f})  largest "
            f"change {row['largest_change']:.2%} of the largest logit  same best {row['same_best']:.1%}", flush=True,
        )  # fmt: skip
    print(json.dumps({"bench": "activation_quality", "asked": vars(asked), "rows": rows, "cpu": fingerprint().cpu}))


if __name__ == "__main__":
    main()

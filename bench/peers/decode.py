"""Decode alone on larger models: ours against llama-bench, interleaved in one run, same bits, same threads.

python bench/peers/decode.py --llama DIR [--repeats 3] [--tokens 64] MODEL=FILE.gguf ... [random:tinyllama-1.1b]
A bare `random:NAME` is written as Q4_0 into --scratch first, so that both read the same number of bytes; decode speed
does not depend on what the weights say. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from llamacpp_binaries import Binaries

from ridgeline.llm import LLM
from ridgeline.models.catalogue import shape
from ridgeline.run.machine import fingerprint, measure
from ridgeline.run.noise import CpuWatch

PROMPT = 32
ROW = "{:<34} {:>10} {:>9} {:>9} {:>9} {:>8} {:>8}"


def write_random(name: str, folder: Path) -> Path:
    """A llama of random Q4_0 weights in the shape of `random:NAME`, with a vocabulary of numbers only."""
    import gguf

    target = folder / f"{name}.q4_0.gguf"
    if target.exists():
        return target
    spec = shape(name)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(spec.layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(spec.width)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(spec.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    generator = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType.Q4_0

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = generator.integers(0, 256, (rows, columns // 32, 18), np.uint8)
        blocks[:, :, :2] = np.array([0.02 / 4.6], np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)

    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    matrix("token_embd.weight", spec.vocabulary, spec.width)
    matrix("output.weight", spec.vocabulary, spec.width)
    writer.add_tensor("output_norm.weight", np.ones(spec.width, np.float32))
    for layer in range(spec.layers):
        for part, rows, columns in (
            ("attn_q", q, spec.width), ("attn_k", kv, spec.width), ("attn_v", kv, spec.width),
            ("attn_output", spec.width, q), ("ffn_gate", spec.ffn, spec.width),
            ("ffn_up", spec.ffn, spec.width), ("ffn_down", spec.width, spec.ffn),
        ):  # fmt: skip
            matrix(f"blk.{layer}.{part}.weight", rows, columns)
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(spec.width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


class Pair:
    """One model, in our engine and in a file for llama.cpp."""

    def __init__(self, name: str, folder: Path, activations: str) -> None:
        ours, _, file = name.partition("=")
        self.name = ours
        is_random = ours.startswith("random:") and not file
        self.file = write_random(ours.partition(":")[2], folder) if is_random else Path(file or ours)
        self.llm = LLM(
            ours, weights="q4_0" if is_random else "native", max_sequences=1, context=1024, activations=activations
        )
        self.bytes = self.llm.facts.resident_weight_bytes
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.read: list[float] = []

    def once(self, tokens: int, binaries: Binaries, threads: int) -> None:
        """Tokens/s of both, one after the other, and the read bandwidth between them."""
        ids = [100 + i for i in range(PROMPT)]
        tpot_s = self.llm.generate([ids], max_tokens=tokens, ignore_stop=True)[0].tpot_s
        self.ours.append(1 / tpot_s if tpot_s else 0.0)
        self.read.append(measure(threads).read_bytes_per_s)
        text = binaries.run("llama-bench", "-m", self.file, "-p", 0, "-n", tokens, "-t", threads, "-r", 1, "-o", "json")
        self.theirs.append(float(json.loads(text)[0]["avg_ts"]))

    def row(self) -> dict[str, Any]:
        ours, theirs, read = (statistics.median(values) for values in (self.ours, self.theirs, self.read))
        return {
            "model": self.name, "file": self.file.name, "weight_bytes": self.bytes, "read_bytes_per_s": read,
            "ours_tokens_per_s": ours, "theirs_tokens_per_s": theirs, "all_ours": self.ours, "all_theirs": self.theirs,
            "share_of_read": ours * self.bytes / read, "their_share_of_read": theirs * self.file.stat().st_size / read,
            "ratio": ours / theirs,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL=FILE")
    parser.add_argument("--llama", type=Path, required=True, help="environment with llama.cpp's programs")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activations", default="int16", help="ours: int16, auto or int8")
    asked = parser.parse_args()
    binaries = Binaries(asked.llama)
    rows = []
    watch = CpuWatch()
    for name in asked.models:  # one model at a time: two large ones do not share the memory
        pair = Pair(name, asked.scratch, asked.activations)
        for _ in range(asked.repeats):
            pair.once(asked.tokens, binaries, asked.threads)
        pair.llm.close()
        rows.append(pair.row())
    binaries.close()
    print(ROW.format("model", "weights", "ours t/s", "llama.cpp", "ratio", "of read", "theirs"))
    for row in rows:
        print(ROW.format(
            row["model"].rpartition("/")[2][:34], f"{row['weight_bytes'] / 1e6:.0f} MB",
            f"{row['ours_tokens_per_s']:.1f}", f"{row['theirs_tokens_per_s']:.1f}", f"{row['ratio']:.2f}x",
            f"{row['share_of_read']:.0%}", f"{row['their_share_of_read']:.0%}",
        ))  # fmt: skip
    share = watch.foreign_cpu_share()
    print(f"{asked.threads} threads; others used {(share or 0):.1%} of the machine meanwhile")
    print(
        json.dumps(
            {
                "bench": "peers/decode",
                "rows": rows,
                "activations": asked.activations,
                "foreign_cpu_share": share,
                "cpu": fingerprint().cpu,
            }
        )
    )


if __name__ == "__main__":
    main()

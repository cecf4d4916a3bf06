"""What a grammar costs: compile time, and time to mask a token, of llguidance and (when installed) xgrammar.

python bench/grammar.py --model smollm2-135m [--json]: walks texts that obey each grammar, token by token.
xgrammar is no dependency of ours (it needs PyTorch and transformers): it is measured to say why llguidance was chosen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ridgeline.models.load import describe
from ridgeline.text.tokenizer import Tokenizer

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
    "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 8},
        "address": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 40}}, "required": ["city"],
                    "additionalProperties": False},
    },
}  # fmt: skip
WIDE = {
    "type": "object", "additionalProperties": False, "required": [f"field_{i}" for i in range(60)],
    "properties": {f"field_{i}": {"type": ["string", "number"][i % 2]} for i in range(60)},
}  # fmt: skip
CASES: tuple[tuple[str, str, Any, str], ...] = (
    ("object", "json_schema", {"type": "object"},
     json.dumps({"a": [1, 2, {"b": None}], "text": "The quick brown fox jumps over the lazy dog. " * 4})),
    ("person", "json_schema", PERSON,
     json.dumps({"name": "Ada Lovelace", "age": 36, "tags": ["red", "blue"], "address": {"city": "London"}})),
    ("60 fields", "json_schema", WIDE,
     json.dumps({f"field_{i}": f"value {i}" if i % 2 == 0 else i * 1.5 for i in range(60)})),
    ("date", "regex", r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(Z|[+-]\d{2}:\d{2})", "2026-11-21T19:12:00+01:00"),
)  # fmt: skip

Walk = Callable[[str, Any, list[int]], tuple[float, list[float]]]


def words(tokenizer: Tokenizer, vocabulary: int) -> list[bytes]:
    return [tokenizer.piece(token) for token in range(vocabulary)]


def llguidance_walk(tokenizer: Tokenizer, vocabulary: int) -> tuple[float, Walk]:
    """(seconds to prepare the vocabulary, walk)."""
    import llguidance

    from ridgeline.state.request import Grammar
    from ridgeline.text.grammar import Lexicon, source_of

    began = time.perf_counter()
    lexicon = Lexicon.of(tokenizer, vocabulary, tokenizer.eos)
    prepared = time.perf_counter() - began

    def walk(kind: str, what: Any, ids: list[int]) -> tuple[float, list[float]]:
        text = what if kind == "regex" else json.dumps(what)
        began = time.perf_counter()
        matcher = llguidance.LLMatcher(lexicon.words, source_of(Grammar(kind, text)))
        compiled = time.perf_counter() - began
        mask = np.zeros((vocabulary + 31) // 32, np.uint32)
        took = []
        for token in ids:
            began = time.perf_counter()
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            is_taken = matcher.consume_token(token)
            took.append(time.perf_counter() - began)
            assert is_taken and mask[token // 32] >> (token % 32) & 1, matcher.get_error()
        return compiled, took

    return prepared, walk


def xgrammar_walk(tokenizer: Tokenizer, vocabulary: int) -> tuple[float, Walk]:
    import xgrammar

    began = time.perf_counter()
    info = xgrammar.TokenizerInfo(
        words(tokenizer, vocabulary), xgrammar.VocabType.RAW, vocab_size=vocabulary, stop_token_ids=list(tokenizer.eos)
    )
    prepared = time.perf_counter() - began

    def walk(kind: str, what: Any, ids: list[int]) -> tuple[float, list[float]]:
        compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        began = time.perf_counter()
        compiled = compiler.compile_regex(what) if kind == "regex" else compiler.compile_json_schema(json.dumps(what))
        took_s = time.perf_counter() - began
        matcher = xgrammar.GrammarMatcher(compiled)
        mask = xgrammar.allocate_token_bitmask(1, vocabulary)
        took = []
        for token in ids:
            began = time.perf_counter()
            matcher.fill_next_token_bitmask(mask)
            is_taken = matcher.accept_token(token)
            took.append(time.perf_counter() - began)
            assert is_taken
        return took_s, took

    return prepared, walk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", default="llguidance")
    arguments = parser.parse_args()
    described = describe(arguments.model)
    tokenizer, vocabulary = described.tokenizer(), described.spec.vocabulary
    assert tokenizer is not None
    engines = {"llguidance": llguidance_walk, "xgrammar": xgrammar_walk}
    rows = []
    for name in arguments.engines.split(","):
        prepared, walk = engines[name](tokenizer, vocabulary)
        print(f"{name}: {vocabulary} tokens prepared in {prepared:.3f} s")
        print(f"  {'grammar':12}{'tokens':>8}{'compile ms':>12}{'median us':>11}{'p99 us':>9}{'most us':>9}")
        for label, kind, what, text in CASES:
            ids = tokenizer.encode(text, add_bos=False)
            runs = [walk(kind, what, ids) for _ in range(arguments.repeats)]
            compile_ms = 1e3 * statistics.median(run[0] for run in runs)
            masks = sorted(1e6 * took for run in runs for took in run[1])
            median, p99, most = statistics.median(masks), masks[int(0.99 * len(masks))], masks[-1]
            print(f"  {label:12}{len(ids):8}{compile_ms:12.2f}{median:11.1f}{p99:9.1f}{most:9.1f}")
            found = {"compile_ms": compile_ms, "mask_us": median, "mask_p99_us": p99, "mask_most_us": most}
            rows.append({"engine": name, "grammar": label, "tokens": len(ids), "prepare_s": prepared} | found)
    print(json.dumps({"schema": "ridgeline.bench.grammar/1", "model": arguments.model, "rows": rows}))


if __name__ == "__main__":
    main()

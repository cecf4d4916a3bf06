"""Every pair of entries from different seams, run through the engine on a cut of SmolLM2's real weights (DESIGN §3.1).

Each pair passes (tokens, or quality within what its parts cost alone; bytes; invariants) or is refused in a sentence.
`PYTHONPATH=src python -m tests.conformance.pairs --write` makes docs/pairs.md anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ridgeline.engine.build import build
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import UserError
from ridgeline.memory.storage.storage import BLOCK_STORAGES, BLOCK_TOKENS, STORAGES, make_storage
from ridgeline.models.load import load
from ridgeline.ops.protocols import BlockStorage
from ridgeline.schedule.policy import POLICIES
from ridgeline.state.request import Request, Sampling

PAGE = Path(__file__).parents[2] / "docs" / "pairs.md"
VOCABULARY, CONTEXT, POOL_BLOCKS = 512, 192, 26  # two of the longest sequences fit, so others are preempted
TEXT = tuple((i * i * 31 + 17 * i) % 480 + 17 for i in range(140))


@dataclass(frozen=True)
class Entry:
    """One technique of a seam. is_same: with it, ids are those without it."""

    seam: str
    name: str
    options: dict[str, Any] = field(hash=False, compare=False)
    is_same: bool = True


def seams(dense: str, smaller: str) -> dict[str, list[Entry]]:
    """Entries by seam; the first of each is the default that the others are compared with."""

    def entries(seam: str, option: str, names: tuple[str, ...], *, is_same: bool) -> list[Entry]:
        return [Entry(seam, name, {option: name}, is_same) for name in names]

    guesses = ("ngram:k=4,adapt=off", "ngram:k=3,width=2,adapt=off", f"draft:{smaller},k=3,adapt=off")
    memory = {
        "alone": {"prefix": False}, "shared beginnings": {"prefix": True},
        "host tier": {"prefix": True, "host_kv_bytes": 1 << 24},
        "disk tier": {"prefix": True, "host_kv_bytes": 1 << 14, "disk_kv_bytes": 1 << 24},
        "contiguous": {"prefix": False, "paging": False}, "static batches": {"prefix": False, "batching": "static"},
    }  # fmt: skip
    formats = ("bf16", "f32", "f16", "q8_0", "q4_1", "q4_0", "q5_0", "int8", "int4", "fp8")
    return {
        "policy": entries("policy", "policy", default_first("fcfs", POLICIES), is_same=True),
        "storage": entries("storage", "kv", default_first("bf16", (*STORAGES, *BLOCK_STORAGES)), is_same=False),
        "retention": entries(
            "retention", "keep", ("all", "window:64", "sinks:4+window:60", "h2o:32+window:32"), is_same=False
        ),
        "decoder": [
            Entry("decoder", "autoregressive", {}),
            *(Entry("decoder", spec.replace(smaller, "SMALLER"), {"spec": spec}) for spec in guesses),
        ],
        # Only integer products round what they read: on q8_0, unless the other entry is a format (later, so it wins).
        "activations": [
            Entry("activations", "int16", {"activations": "int16"}),
            *(
                Entry("activations", f"{name} activations", {"activations": name, "weights": "q8_0"}, is_same=False)
                for name in ("auto", "int8")
            ),
        ],
        "format": entries("format", "weights", formats, is_same=False),
        "memory": [Entry("memory", name, options) for name, options in memory.items()],
        "body": entries("body", "body", ("cpp", "torch"), is_same=False),
        "family": [
            Entry("family", "llama", {"model": dense}),
            Entry("family", "moe8 (the same weights as 8 experts)", {"model": f"moe8:{dense}"}, is_same=False),
        ],
    }


def default_first(default: str, names: Iterable[str]) -> tuple[str, ...]:
    """Every name of a table, so that a new one is judged without being told."""
    return (default, *(name for name in names if name != default))


@dataclass(frozen=True)
class Outcome:
    """nll: of TEXT, nats a token; NaN when refused."""

    tokens: tuple[tuple[int, ...], ...] = ()
    nll: float = float("nan")
    refused: str = ""


def requests() -> list[Request]:
    """Two that begin alike, a long one, a short one, a drawn one; more than the pool holds at once."""
    common = TEXT[:50]
    prompts = (common + TEXT[60:130], common + TEXT[90:120], TEXT[::-1], TEXT[3:9], (TEXT[20:60] * 3)[:110])
    drawn = Sampling(temperature=0.8, top_k=20, seed=7)
    return [
        Request(f"r{i}", prompt, 10, drawn if i == 4 else Sampling(), ignore_stop=True, priority=i % 2, tenant="")
        for i, prompt in enumerate(prompts)
    ]


def run(options: dict[str, Any]) -> Outcome:
    """The requests, arriving a few steps apart, with every invariant checked after every step."""
    storage = make_storage(options.get("kv", "bf16"))
    per_token = 2 * storage.bytes_per_token(3, 64)  # the cut has two layers of three kv heads
    near = 2 * storage.recent.bytes_per_token(3, 64) if isinstance(storage, BlockStorage) else 0
    if "h2o" in options.get("keep", ""):
        per_token += 2 * 3 * 4  # attention mass, f32 a layer and kv head
    config = {
        "kv": "bf16", "weights": "bf16", "prefix": False, "threads": 1, "context": CONTEXT, "max_sequences": 4,
        "step_tokens": 48, "kv_bytes": POOL_BLOCKS * BLOCK_TOKENS * (per_token + near),
    }  # fmt: skip
    try:
        engine = build(EngineConfig(**(config | options)))
    except UserError as error:
        return Outcome(refused=str(error).splitlines()[0])
    try:
        if engine.facts.kv_bytes_per_token != per_token:
            raise AssertionError(f"{engine.facts.kv_bytes_per_token} bytes a token; {per_token} by the closed form")
        waiting = [Request("nll", TEXT, 0, prompt_logprobs=0), *requests()]
        tokens: dict[str, list[int]] = {request.id: [] for request in waiting}
        scores: list[float] = []
        done, step = 0, 0
        while done < len(tokens):
            if waiting and step % 2 == 0:
                engine.add(waiting.pop(0))
            step += 1
            if step > 3000:
                raise AssertionError("no end in 3,000 steps")
            for event in engine.step():
                tokens[event.request] += event.tokens
                scores += [scored.logprob for scored in event.prompt_scored] if event.request == "nll" else []
                done += event.finish is not None
            engine.check()
        return Outcome(tuple(tuple(ids) for name, ids in tokens.items() if name != "nll"), -float(np.mean(scores)))
    finally:
        engine.close()


class Table:
    """Outcomes of defaults, single entries and pairs, each run once."""

    def __init__(self, folder: Path) -> None:
        dense, smaller = write_cut(folder / "cut", 2), write_cut(folder / "smaller", 1)
        self.seams = seams(dense, smaller)
        self._default_options = {k: v for found in self.seams.values() for k, v in found[0].options.items()}
        self._known: dict[tuple[Entry, ...], Outcome] = {}

    def pairs(self) -> Iterator[tuple[Entry, Entry]]:
        """Pairs of entries that are no defaults, from different seams."""
        for (_, first), (_, second) in itertools.combinations(self.seams.items(), 2):
            yield from itertools.product(first[1:], second[1:])

    def outcome(self, *entries: Entry) -> Outcome:
        if entries not in self._known:
            options = dict(self._default_options)
            for entry in entries:
                options |= entry.options
            self._known[entries] = run(options)
        return self._known[entries]

    def judge(self, first: Entry, second: Entry) -> str:
        """ "" when the pair passes; "refused: ..." or "wrong: ..." with the reason otherwise."""
        pair = self.outcome(first, second)
        if pair.refused:
            return f"refused: {pair.refused}"
        alone = [self.outcome(entry) for entry in (first, second)]
        for entry, outcome in zip((first, second), alone, strict=True):
            if outcome.refused:
                return f"wrong: the pair runs, but {entry.name} alone is refused"
        if first.is_same or second.is_same:
            expected = alone[1] if first.is_same else alone[0]
            return "" if pair.tokens == expected.tokens else "wrong: other tokens"
        plain = self.outcome()
        cost = sum(abs(outcome.nll - plain.nll) for outcome in alone)
        drift = abs(pair.nll - plain.nll)
        return "" if drift <= 2 * cost + 0.02 else f"wrong: {drift:.3f} nats a token off; alone they cost {cost:.3f}"


def write_cut(folder: Path, layers: int) -> str:
    """The first layers and tokens of SmolLM2-135M as a Hugging Face directory; its path."""
    loaded = load("smollm2-135m")
    spec = loaded.spec
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "model.embed_tokens.weight": loaded.weights.embed.unpack()[:VOCABULARY],
        "model.norm.weight": loaded.weights.final_norm.unpack()[0],
    }
    names = {
        "attend_norm": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
        "o": "self_attn.o_proj", "mlp_norm": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }  # fmt: skip
    for index, layer in enumerate(loaded.weights.layers[:layers]):
        for role, name in names.items():
            values = getattr(layer, role).unpack()
            if role in ("q", "k"):  # GGUF pairs neighbours, Hugging Face pairs halves
                heads = len(values) // spec.head_dim
                values = values.reshape(heads, spec.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
            values = values[0] if role.endswith("norm") else values
            tensors[f"model.layers.{index}.{name}.weight"] = np.ascontiguousarray(values)
    save_file(tensors, str(folder / "model.safetensors"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": spec.width,
        "intermediate_size": spec.ffn, "num_hidden_layers": layers, "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads, "head_dim": spec.head_dim, "vocab_size": VOCABULARY,
        "max_position_embeddings": 1024, "rms_norm_eps": spec.norm_eps, "rope_theta": spec.rope.base,
        "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def page(table: Table) -> str:
    """docs/pairs.md: counts by pair of seams, then every refusal, then anything wrong."""
    verdicts = {pair: table.judge(*pair) for pair in table.pairs()}
    passed = sum(not said for said in verdicts.values())
    refused = {pair: said for pair, said in verdicts.items() if said.startswith("refused")}
    wrong = {pair: said for pair, said in verdicts.items() if said.startswith("wrong")}
    lines = [
        "# Pairs", "",
        "Every pair of entries from different seams, run through the engine on a cut of SmolLM2-135M's weights (two "
        "layers, 512 tokens) with preemption, arrivals while others run, and every invariant checked after every step. "
        "A pair passes when its ids are those of its lossy part alone, or, when both parts round, when the text's "
        "log-likelihood moves by no more than twice what the parts cost alone (plus 0.02 nats a token). Made by "
        "`PYTHONPATH=src python -m tests.conformance.pairs --write`; `tests/conformance` holds it to the code.", "",
        f"**{len(verdicts)} pairs: {passed} pass ({passed / len(verdicts):.1%}), {len(refused)} are refused in a "
        f"sentence, {len(wrong)} are wrong.**", "",
        "| entries | " + " | ".join(table.seams) + " |", "|---" * (len(table.seams) + 1) + "|",
    ]  # fmt: skip
    for seam in table.seams:
        cells = []
        for other in table.seams:
            found = [said for (a, b), said in verdicts.items() if {a.seam, b.seam} == {seam, other}]
            cells.append(f"{sum(not said for said in found)} of {len(found)}" if found else "")
        lines.append(f"| {seam} | " + " | ".join(cells) + " |")
    lines += ["", "## Entries", ""]
    for seam, entries in table.seams.items():
        lines.append(f"- {seam}: {entries[0].name} (default), " + ", ".join(f"`{e.name}`" for e in entries[1:]))
    lines += ["", "## What an entry alone costs", "", "| entry | nats a token against the default |", "|---|---|"]
    plain = table.outcome()
    for entries in table.seams.values():
        for entry in entries[1:]:
            if not entry.is_same and not table.outcome(entry).refused:
                lines.append(f"| {entry.seam} `{entry.name}` | {table.outcome(entry).nll - plain.nll:+.4f} |")
    for title, found in (("Refused", refused), ("Wrong", wrong)):
        if found:
            lines += ["", f"## {title}", "", "| pair | sentence |", "|---|---|"]
            lines += [f"| `{a.name}` with `{b.name}` | {said.partition(': ')[2]} |" for (a, b), said in found.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/pairs.md instead of printing it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = page(Table(Path(folder)))
    text = text.replace(folder, "…")
    if asked.write:
        PAGE.write_text(text, "utf-8")
    else:
        print(text)
    return int("are wrong.**" in text and ", 0 are wrong" not in text)


if __name__ == "__main__":
    sys.exit(main())

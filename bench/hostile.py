"""Hostile files: small valid ones, and everything a fuzzer does to them. A case follows from (seed, kind, number).

Kinds: gguf (header, tensors and the tokenizer inside), safetensors (with its index), config (config.json), tokenizer
(tokenizer.json and tokenizer_config.json), template (chat templates, run), quantised (quantization_config and the
tensors it describes, in every layout). Needs nothing but the base package.
"""
# size: one list of damages a kind of file, beside each other to be compared

from __future__ import annotations

import copy
import functools
import json
import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import quantised_layouts as layouts

KINDS = ("gguf", "safetensors", "config", "tokenizer", "template", "quantised")
NUMBERS = (0, 1, 2, -1, 127, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
FLOATS = (0.0, -0.0, 1e-45, -1.0, 0.5, 1e38, 1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "\0",
    "a\0b",
    "\x1b[2J",
    "llama\n",
    "é" * 300,
    "\U0001f600",
    "\ufdd0",
    "\ufdd1",
    "../../etc/passwd",
    "9" * 5000,
)
TEXTS += ("<0x41>", "▁", " ", "{{ 1 }}", "%s%n", "\ud800", "a" * 70_000)
WIDTH, LAYERS, WORDS = 8, 2, 300
MOST_PLACES = 20_000
NEST = re.compile(r'"@nest(\d+)@"')


@dataclass
class Case:
    """Files to write, and messages for a template. `note` says what was done."""

    files: dict[str, bytes] = field(default_factory=dict)
    template: str | None = None
    note: str = ""


def make(seed: int, kind: str, number: int) -> Case:
    """The same case for the same three."""
    draw = random.Random(f"{seed} {kind} {number}")
    return {
        "gguf": gguf_case, "safetensors": safetensors_case, "config": config_case, "tokenizer": tokenizer_case,
        "template": template_case, "quantised": quantised_case,
    }[kind](draw)  # fmt: skip


# -- bytes


def damage(draw: random.Random, data: bytes, sizes: bool = True) -> tuple[bytes, str]:
    """Bit flips, truncation, bytes removed, doubled or overwritten, and length fields at extremes."""
    out = bytearray(data)
    kinds = ["flip", "byte", "truncate", "remove", "double", "zero", "swap", *(["length"] * 3 if sizes else [])]
    done = []
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        kind, size = draw.choice(kinds), max(len(out), 1)
        at = min(int(draw.random() ** draw.choice((1, 3)) * size), len(out))  # heads are more telling than tails
        length = draw.choice((1, 2, 8, 64))
        if kind == "flip" and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == "byte" and at < len(out):
            out[at] = draw.choice((0, 1, 0x7F, 0x80, 0xC0, 0xFF, draw.randrange(256)))
        elif kind == "truncate":
            del out[at:]
        elif kind == "remove":
            del out[at : at + length]
        elif kind == "double":
            out[at:at] = out[at : at + length]
        elif kind == "zero":
            out[at : at + length] = bytes(min(length, max(len(out) - at, 0)))
        elif kind == "swap":
            other = draw.randrange(size)
            out[at : at + 8], out[other : other + 8] = out[other : other + 8], out[at : at + 8]
        elif kind == "length":
            code = draw.choice(("<I", "<Q"))
            packed = struct.pack(code, draw.choice(NUMBERS) % (1 << 8 * struct.calcsize(code)))
            out[at : at + len(packed)] = packed
        done.append(f"{kind}@{at}")
    return bytes(out), " ".join(done)


# -- values: JSON and GGUF metadata alike


def odd_value(draw: random.Random, value: Any) -> Any:
    """Another value in its place: of another type, or the same type at an extreme."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(NUMBERS), lambda: draw.choice(FLOATS), lambda: draw.choice(TEXTS), lambda: None,
        lambda: draw.choice((True, False)), lambda: [], lambda: {}, lambda: [value], lambda: {"a": value},
        lambda: nested(draw.choice((3, 60, 120, 200, 900, 990, 1000, 5000, 100_000))),
        lambda: [draw.choice(NUMBERS)] * 3,
        lambda: [draw.choice(TEXTS)] * 2,
        lambda: [value] * draw.choice((2, 2 if isinstance(value, (list, dict)) else 2000)),
    ]  # fmt: skip
    if isinstance(value, bool):
        kinds.append(lambda: not value)
    elif isinstance(value, (int, float)):
        kinds += [lambda: value + 1, lambda: -value, lambda: value * 3, lambda: float(value) + 0.5, lambda: str(value)]
    elif isinstance(value, str):
        kinds += [
            lambda: value + "\0",
            lambda: value[::-1],
            lambda: value * 50,
            lambda: value[1:],
            lambda: value.upper(),
        ]
    elif isinstance(value, list) and value:
        kinds += [lambda: value[:-1], lambda: value + value, lambda: draw.sample(value, len(value))]
    return draw.choice(kinds)()


def nested(depth: int) -> str:
    """Stands for that many lists in each other, which to_json writes out: Python could not copy them."""
    return f"@nest{depth}@"


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value below the top."""
    found: list[tuple[Any, ...]] = []
    stack = [(tree, path)]
    while stack and len(found) < MOST_PLACES:
        node, here = stack.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, below in items:
            found.append((*here, key))
            stack.append((below, (*here, key)))
    return found


def odd_tree(draw: random.Random, tree: Any) -> tuple[Any, str]:
    """A copy with a few values changed, dropped, moved or added."""
    tree = copy.deepcopy(tree)
    done = []
    for _ in range(draw.choice((1, 1, 2, 4))):
        every = places(tree)
        if not every or len(every) >= MOST_PLACES:
            break  # moved into itself again and again it would grow without end
        path = draw.choice(every)
        if draw.random() < 0.5:
            path = path[: draw.randrange(1, len(path) + 1)]  # nearer the top
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        key, action = path[-1], draw.choice(("odd", "odd", "odd", "drop", "move", "add"))
        if action == "odd":
            parent[key] = odd_value(draw, parent[key])
        elif action == "drop":
            del parent[key]
        elif action == "move":
            other = draw.choice(every)
            source = tree
            try:
                for step in other:
                    source = source[step]
            except (KeyError, IndexError, TypeError):
                continue
            parent[key] = copy.deepcopy(source)
        elif isinstance(parent, dict):
            parent[draw.choice(TEXTS)] = odd_value(draw, 1)
        done.append(f"{action} {'.'.join(str(step)[:20] for step in path)}")
    return tree, "; ".join(done)


def to_json(draw: random.Random, tree: Any) -> bytes:
    """JSON, sometimes with a key twice."""
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.7)
    text = NEST.sub(lambda found: "[" * int(found[1]) + "1" + "]" * int(found[1]), text)
    if draw.random() < 0.05:
        text = text.replace("{", '{"model_type": 7, "model_type": [], ', 1)
    return text.encode("utf-8", "surrogatepass")


def json_case(draw: random.Random, tree: Any) -> tuple[bytes, str]:
    if draw.random() < 0.3:
        return damage(draw, json.dumps(tree).encode(), sizes=False)
    changed, note = odd_tree(draw, tree)
    return to_json(draw, changed), note


# -- GGUF


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


SCALAR_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def scalar(kind: int, value: Any) -> bytes:
    code = SCALAR_CODES[kind]
    try:
        if code in "fd":
            return struct.pack("<" + code, float(value))
        bits = 8 * struct.calcsize(code)
        whole = int(value) % (1 << bits)
        return struct.pack("<" + code, whole - (1 << bits) * (code.islower() and whole >= 1 << (bits - 1)))
    except (TypeError, ValueError, OverflowError):
        return bytes(struct.calcsize("<" + code))


def gguf_value(draw: random.Random, value: Any) -> bytes:
    """With its type; numbers in any of the types there are, now and then."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        strings = [text(one if isinstance(one, str) else str(one)[:99]) for one in value]
        return struct.pack("<IIQ", 9, 8, len(strings)) + b"".join(strings)
    if isinstance(value, list):
        kind = 6 if any(isinstance(one, float) for one in value) else draw.choice((4, 5, 5, 5, 7, 11, 12))
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(scalar(kind, one) for one in value)
    if isinstance(value, dict) or value is None:
        return struct.pack("<I", draw.choice((9, 13, 99)))  # nothing that may stand here
    kind = 7 if isinstance(value, bool) else 6 if isinstance(value, float) else draw.choice((4, 4, 4, 5, 10, 11))
    return struct.pack("<I", kind) + scalar(kind, value)


def gguf_model(kind: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """(metadata, shapes with columns first) of a llama of two layers; kind: gpt2 or llama, its tokenizer."""
    words = words_of(kind)
    metadata: dict[str, Any] = {
        "general.architecture": "llama", "general.alignment": 32, "llama.block_count": LAYERS,
        "llama.context_length": 64, "llama.embedding_length": WIDTH, "llama.feed_forward_length": 2 * WIDTH,
        "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1, "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 4,
        "tokenizer.ggml.model": kind, "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(words) - 3)], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATES[0],
    }  # fmt: skip
    if kind == "gpt2":
        metadata["tokenizer.ggml.merges"] = ["h e", "l l", "he ll", "hell o"]
    else:
        metadata["tokenizer.ggml.scores"] = [-float(index) for index in range(len(words))]
        metadata["tokenizer.ggml.unknown_token_id"] = 1
    shapes = {"token_embd.weight": [WIDTH, len(words)], "output_norm.weight": [WIDTH]}
    for layer in range(LAYERS):
        for name, shape in (
            ("attn_norm", [8]), ("attn_q", [8, 8]), ("attn_k", [8, 4]), ("attn_v", [8, 4]), ("attn_output", [8, 8]),
            ("ffn_norm", [8]), ("ffn_gate", [8, 16]), ("ffn_up", [8, 16]), ("ffn_down", [16, 8]),
        ):  # fmt: skip
            shapes[f"blk.{layer}.{name}.weight"] = shape
    shapes["rope_freqs.weight"] = [2]
    return metadata, shapes


def words_of(kind: str) -> list[str]:
    control = ["<s>", "<unk>", "</s>"]
    if kind == "llama":
        return [
            *control,
            *(f"<0x{byte:02X}>" for byte in range(256)),
            "▁",
            "h",
            "e",
            "l",
            "o",
            "he",
            "ll",
            "▁he",
            "llo",
        ]
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(256, 324)]
    return [*control, *map(chr, printable), "he", "ll", "hell", "hello"]


def gguf_bytes(draw: random.Random, metadata: dict[str, Any], tensors: list[list[Any]], twice: str = "") -> bytes:
    """tensors: [name, shape, type, offset, bytes]."""
    keys = list(metadata.items())
    if twice in metadata:
        keys.append((twice, metadata[twice]))
    head = b"GGUF" + struct.pack("<IQQ", draw.choice((2, 3, 3)), len(tensors), len(keys))
    head += b"".join(text(str(key)) + gguf_value(draw, value) for key, value in keys)
    data = b""
    for name, shape, kind, offset, payload in tensors:
        dims = [int(size) % 2**64 for size in shape]
        where = len(data) if offset is None else offset
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind % 2**32, where % 2**64)
        data += payload + bytes(-len(payload) % 32)
    return head + bytes(-len(head) % 32) + data


def gguf_case(draw: random.Random) -> Case:
    kind = draw.choice(("gpt2", "llama"))
    metadata, shapes = gguf_model(kind)
    tensors: list[list[Any]] = []
    for name, shape in shapes.items():
        size = 1
        for one in shape:
            size *= one
        tensors.append([name, list(shape), 0, None, struct.pack("<f", 1.0) * size])
    note = kind
    if draw.random() < 0.4:
        data, done = damage(draw, gguf_bytes(draw, metadata, tensors))
        return Case({"model.gguf": data}, note=f"{note} {done}")
    twice = ""
    for _ in range(draw.choice((1, 1, 2, 3))):
        action = draw.choice(("value", "value", "value", "element", "element", "twice", "key", "tensor", "tensor"))
        key = draw.choice(list(metadata))
        note += f" {action} {key}"
        listed = [name for name, value in metadata.items() if isinstance(value, list) and value]
        if action == "value":
            metadata[key] = odd_value(draw, metadata[key])
        elif action == "element" and listed:
            several = metadata[draw.choice(listed)]
            for _ in range(draw.choice((1, 3, 50))):
                several[draw.randrange(len(several))] = odd_element(draw, several)
        elif action == "twice":
            twice = key
        elif action == "key":
            metadata[draw.choice((*TEXTS, "llama.expert_count", "llama.attn_logit_softcapping"))] = metadata.pop(key)
        elif action == "tensor" and tensors:
            odd_tensor(draw, tensors)
    return Case({"model.gguf": gguf_bytes(draw, metadata, tensors, twice)}, note=note)


def odd_element(draw: random.Random, several: list[Any]) -> Any:
    if isinstance(several[0], str):
        return draw.choice((*TEXTS, draw.choice(several), "he", "h e", " ", "  ", "h  e"))
    return draw.choice((*NUMBERS, *FLOATS))


def odd_tensor(draw: random.Random, tensors: list[list[Any]]) -> None:
    one = draw.choice(tensors)
    action = draw.choice(("drop", "twice", "name", "shape", "type", "offset", "short", "numbers"))
    if action == "drop":
        tensors.remove(one)
    elif action == "twice":
        tensors.append(list(one))
    elif action == "name":
        one[0] = draw.choice((*TEXTS, "output.weight", "rope_freqs.weight", "blk.7.attn_q.weight"))
    elif action == "shape":
        one[1] = draw.choice(
            ([], [0], [1], [*one[1], 1], one[1][::-1], [draw.choice(NUMBERS)] * 2, [2**32] * 4, [32, 8])
        )
    elif action == "type":
        one[2] = draw.choice((*range(40), *NUMBERS))
    elif action == "offset":
        one[3] = draw.choice((*NUMBERS, 32, 64, 33))
    elif action == "short":
        one[4] = one[4][: draw.randrange(len(one[4]) + 1)]
    else:
        one[4] = struct.pack("<f", draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))) * (len(one[4]) // 4)


# -- safetensors and config.json

CONFIGS: list[dict[str, Any]] = [
    {
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": WORDS, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": [2, 3],
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "head_dim": 4, "torch_dtype": "float32",
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    {
        "model_type": "gemma3_text", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": WORDS, "max_position_embeddings": 64,
        "head_dim": 4, "sliding_window": 16, "query_pre_attn_scalar": 4, "rope_local_base_freq": 1e4,
        "layer_types": ["sliding_attention", "full_attention"], "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    {
        "model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": WORDS, "use_sliding_window": True,
        "sliding_window": 16, "max_window_layers": 1, "tie_word_embeddings": True, "partial_rotary_factor": 0.5,
    },
]  # fmt: skip


def hf_shapes() -> dict[str, list[int]]:
    shapes = {"model.embed_tokens.weight": [WORDS, 8], "model.norm.weight": [8]}
    for layer in range(LAYERS):
        for name, shape in (
            ("input_layernorm", [8]), ("post_attention_layernorm", [8]), ("self_attn.q_proj", [8, 8]),
            ("self_attn.k_proj", [4, 8]), ("self_attn.v_proj", [4, 8]), ("self_attn.o_proj", [8, 8]),
            ("mlp.gate_proj", [16, 8]), ("mlp.up_proj", [16, 8]), ("mlp.down_proj", [8, 16]),
        ):  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes


def safetensors_case(draw: random.Random) -> Case:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape in hf_shapes().items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    data = struct.pack("<f", 0.5) * (place // 4)
    index = {"metadata": {}, "weight_map": {name: "model-1.safetensors" for name in hf_shapes()}}
    files = {"config.json": json.dumps(CONFIGS[0]).encode()}
    part = draw.choice(("bytes", "header", "header", "header", "index"))
    changed, note = odd_tree(draw, header) if part == "header" else (header, part)
    written = to_json(draw, changed)
    if draw.random() < 0.1:
        written = written.replace(b'"F32"', draw.choice((b'"I8"', b'"BF16"', b'"F8_E4M3"', b'"F64"', b'"f32"')), 2)
    written += b" " * (-len(written) % 8)
    length = draw.choice(NUMBERS) % 2**64 if draw.random() < 0.05 else len(written)
    whole = struct.pack("<Q", length) + written + data
    if part == "bytes":
        whole, note = damage(draw, whole)
    if part == "index" or draw.random() < 0.2:
        files["model-1.safetensors"] = whole
        files["model.safetensors.index.json"] = json_case(draw, index)[0] if part == "index" else to_json(draw, index)
    else:
        files["model.safetensors"] = whole
    return Case(files, note=note)


def config_case(draw: random.Random) -> Case:
    written, note = json_case(draw, draw.choice(CONFIGS))
    return Case({"config.json": written}, note=note)


# -- quantised safetensors

QUANTISED = CONFIGS[0] | {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16, "rope_scaling": None}
SPAN = 16


@functools.cache
def quantised_model(layout: str) -> tuple[dict[str, layouts.Entry], dict[str, Any]]:
    """(entries, quantization_config); other widths than above, because words are filled whole."""
    generator, sizes = np.random.default_rng(1), {4: 16, 8: 32, 16: 64}
    tensors = {
        name: generator.standard_normal([sizes.get(size, size) for size in shape]).astype(np.float32)
        for name, shape in hf_shapes().items()
    }
    return layouts.quantised(tensors, layout, SPAN)


def quantised_case(draw: random.Random) -> Case:
    layout = draw.choice(layouts.LAYOUTS)
    entries, quantization = quantised_model(layout)
    entries = dict(entries)
    note = layout
    config: Any = QUANTISED | {"quantization_config": quantization}
    action = draw.choice(("config", "config", "whole", "other", "entries", "entries", "values", "values", "bytes"))
    if action == "config":
        changed, done = odd_tree(draw, quantization)
        config, note = QUANTISED | {"quantization_config": changed}, f"{note} {done}"
    elif action == "whole":
        config, note = odd_tree(draw, config)
    elif action == "other":
        other = draw.choice(layouts.LAYOUTS)
        _, quantization = quantised_model(other)
        config, note = QUANTISED | {"quantization_config": quantization}, f"{note} as {other}"
    elif action in ("entries", "values"):
        for _ in range(draw.choice((1, 1, 2, 20))):
            note += f" {(odd_entry if action == 'entries' else odd_numbers)(draw, entries)}"
    data = layouts.safetensors(entries)
    if action == "bytes":
        data, done = damage(draw, data)
        note = f"{note} {done}"
    return Case({"config.json": to_json(draw, config), "model.safetensors": data}, note=note)


def odd_entry(draw: random.Random, entries: dict[str, layouts.Entry]) -> str:
    """Another name, type or shape for the same bytes, or fewer or more of them; the file itself stays whole."""
    name = draw.choice(list(entries))
    kind, shape, data = entries[name]
    action = draw.choice(("drop", "name", "type", "shape", "fold", "short", "take", "twice"))
    sizes = {"F16": 2, "BF16": 2, "I16": 2, "F32": 4, "I32": 4, "I64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
    if action == "drop":
        del entries[name]
    elif action == "name":
        parts = ("qweight", "qzeros", "scales", "g_idx", "weight", "weight_scale", "weight_zero_point", "bias", "x")
        entries[f"{name.rpartition('.')[0]}.{draw.choice(parts)}"] = entries.pop(name)
    elif action == "type":
        other = draw.choice([one for one in sizes if len(data) % sizes[one] == 0])
        entries[name] = (other, (len(data) // sizes[other],) if draw.random() < 0.5 else shape, data)
        if sizes[other] != sizes[kind] and entries[name][1] == shape:
            entries[name] = (other, (*shape[:-1], shape[-1] * sizes[kind] // sizes[other]), data)
    elif action == "shape":
        entries[name] = (kind, draw.choice((shape[::-1], (*shape, 1), (1, *shape), (len(data) // sizes[kind],))), data)
    elif action == "fold" and len(shape) == 2 and shape[0] % 2 == 0:
        entries[name] = (kind, (shape[0] // 2, shape[1] * 2), data)
    elif action == "short" and len(shape) == 2 and shape[0] > 1:
        entries[name] = (kind, (shape[0] - 1, shape[1]), data[: -len(data) // shape[0]])
    elif action == "take":
        entries[name] = entries[draw.choice(list(entries))]
    else:
        entries[f"lm_head.{name.rpartition('.')[2]}"] = entries[name]
    return f"{action} {name}"


def odd_numbers(draw: random.Random, entries: dict[str, layouts.Entry]) -> str:
    """Codes, zeros, scales, indexes and shapes that no writer gave."""
    name = draw.choice([one for one in entries if "_proj" in one])
    kind, shape, data = entries[name]
    word = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\x00\x7c", b"\xff\x7f", b"\1\0\0\0", draw.randbytes(8)))
    filled = (word * (len(data) // len(word) + 1))[: len(data)]
    at = draw.randrange(len(data))
    entries[name] = (
        kind,
        shape,
        draw.choice((filled, draw.randbytes(len(data)), data[:at] + filled[at : at + 8] + data[at + 8 :])),
    )
    return f"numbers {name}"


# -- tokenizer.json


def tokenizer_tree(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    kind = draw.choice(("gpt2", "llama"))
    words = words_of(kind)
    added = [
        {"id": index, "content": words[index], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index in range(3)
    ]  # fmt: skip
    merges: list[Any] = ["h e", "l l", "he ll", "hell o"] if kind == "gpt2" else [["h", "e"], ["l", "l"], ["▁", "he"]]
    tree: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {word: index for index, word in enumerate(words)}, "merges": merges,
        },
    }  # fmt: skip
    if kind == "llama":
        tree["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
        tree["pre_tokenizer"] = None
        tree["decoder"] = {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        }
        tree["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATES[0]}
    return tree, config


PARTS = (
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "xx"},
    {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Removed", "invert": True},
    {"type": "Prepend", "prepend": ""},
    {"type": "Strip", "content": "", "start": 99, "stop": 2**40},
    {"type": "FixedLength", "length": 0},
    {"type": "Punctuation"},
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "x"},
)


def tokenizer_case(draw: random.Random) -> Case:
    tree, config = tokenizer_tree(draw)
    part = draw.choice(("tokenizer", "tokenizer", "tokenizer", "config", "part", "added"))
    note, written, other = part, json.dumps(tree).encode(), json.dumps(config).encode()
    if part == "tokenizer":
        if draw.random() < 0.7:  # not only in the long vocabulary
            changed, note = odd_tree(draw, {key: value for key, value in tree.items() if key != "model"})
            whole = {"model": tree["model"], **changed} if isinstance(changed, dict) else changed
            written = to_json(draw, whole)
        else:
            written, note = json_case(draw, tree)
    elif part == "config":
        other, note = json_case(draw, config)
    elif part == "part":
        key = draw.choice(("normalizer", "pre_tokenizer", "decoder"))
        tree[key] = draw.choice(PARTS)
        note, written = f"{key} {tree[key]}", json.dumps(tree).encode()
    else:
        draw.choice(tree["added_tokens"])["content"] = draw.choice(TEXTS)
        draw.choice(tree["added_tokens"])["id"] = draw.choice(NUMBERS[:11])
        written = to_json(draw, tree)
    return Case({"tokenizer.json": written, "tokenizer_config.json": other}, note=note)


# -- templates

TEMPLATES = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] | trim }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{%- macro turn(m) -%}{{ m.role }}: {{ m.content }}\n{%- endmacro -%}{% set ns = namespace(n=0) %}"
    "{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + 1 %}{{ turn(m) }}{{ loop.index0 }}{% endfor %}"
    "{{ ns.n }}",
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{{ system | replace('a', 'b') }}"
    "{% for m in messages %}{{ m | tojson(indent=2) }}{{ m.content.split(' ') | join('-') }}{% endfor %}",
    "{% if messages | length > 9 %}{{ raise_exception('too many') }}{% endif %}{{ strftime_now('%d %b %Y') }}"
    "{% generation %}{{ messages[-1]['content'] | upper | indent(4) }}{% endgeneration %}",
)
BOMBS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = ns.x + ['a' ~ i] %}{% endfor %}",
    "{% set ns = namespace(k=[], x='a') %}{% for i in range(24) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    "{% for i in range(9999) %}{% set ns.k = ns.k + [ns.x ~ i] %}{% endfor %}",
    "{{ [1] | batch(999999999, 0) | list }}",
    "{{ [1] | slice(999999999) | list }}",
    "{{ lipsum(n=9999, min=99, max=999) }}",
    "{{ 'a' | center(999999999) }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ 'a' * 999999999 }}",
    "{{ [0] * 999999999 }}",
    "{{ 1 / 0 }}",
    "{{ range(10**9) | sum }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% macro m(x, n) %}{% if n %}{{ m(x ~ x, n - 1) }}{{ m(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ m('ab', 40) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{{ messages | map('length') | sum }}",
    "{{ messages | tojson | tojson | tojson | wordcount }}",
    "{{ ('a' ~ 'b') | urlize(99999999) }}",
    "{{ 'a b ' * 1 | wordwrap(1, wrapstring='x') }}",
    "{{ 1.5 | round(99999) }}",
    "{{ 'a,' | replace('', 'b' ~ 'c') }}",
    "{{ messages | pprint }}",
    "{{ cycler(1, 2).next() }}",
    "{{ dict(a=1) | xmlattr }}",
    "{% filter upper %}{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfilter %}",
    "{% call(x) m() %}{% endcall %}",
    "{{ strftime_now('%' ~ 'Y' ~ '\x00') }}",
    "{{ strftime_now(5) }}",
    "{{ '9' | int(base=99) }}",
    "{{ ('9' ~ '9999999999') | int | filesizeformat }}",
    "{{ [[1]] | sum(start=[]) }}",
    "{{ messages | sort }}",
    "{% set x = [] %}{% for i in range(9) %}{{ x.append(x) }}{% endfor %}{{ x }}",
    "{{ '\ud800' }}",
    "{{ 'a'.encode('utf-16') }}",
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a.a | tojson }}",
    "{{ 'x'.join(range(99999)) }}",
    "{{ 'x' | format(1) }}",
    "{{ messages | groupby('role') | tojson }}",
    "{{ (1, 2) | random }}",
    "{{ 'a' | attr('__class__') }}",
    "{{ undefined.a.b }}",
    "{{ 'ab' | list | unique | join('a') }}",
    "{{ 'abc' | truncate(1, true, 'x') }}",
    "{% break %}",
    "{{ 10 ** 9 ** 2 }}",
    "{{ 'a'.maketrans }}",
    "{{ 'a'.translate({97: 'aaaaaaaaaa'}) }}",
    "{{ 'a'.expandtabs(999999999) }}",
    "{{ '\t'.expandtabs(99999999) }}",
)
PIECES = (
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-",
    "|",
    "(",
    ")",
    "[",
    "]",
    "'",
    '"',
    "\\",
    ".",
    ",",
    "~",
    "+",
    "*",
    "**",
    "0",
    "\0",
)
NESTS = (("(", ")"), ("[", "]"), ("{% if 1 %}", "{% endif %}"), ("{% for a in [1] %}", "{% endfor %}"), ("not ", ""))
NESTS += (("-", ""), ("{% set x %}", "{% endset %}"), ("{% filter upper %}", "{% endfilter %}"), ("{'a':", "}"))


def template_case(draw: random.Random) -> Case:
    action = draw.choice(("bytes", "bytes", "splice", "pieces", "bomb", "bombs", "nest"))
    base = draw.choice(TEMPLATES)
    if action == "bytes":
        data, note = damage(draw, base.encode(), sizes=False)
        return Case(template=data.decode("utf-8", "replace"), note=note)
    if action == "splice":
        other = draw.choice((*TEMPLATES, *BOMBS))
        source = base[: draw.randrange(len(base))] + other[draw.randrange(len(other)) :]
    elif action == "pieces":
        at = [draw.randrange(len(base)) for _ in range(draw.choice((1, 3, 9)))]
        source = base
        for place in at:
            source = source[:place] + draw.choice(PIECES) + source[place + draw.randrange(2) :]
    elif action == "bomb":
        source = draw.choice(BOMBS)
    elif action == "bombs":
        source = "".join(draw.choice((*BOMBS, *TEMPLATES)) for _ in range(3)).replace(
            "99", draw.choice(("9", "99", "5"))
        )
    else:
        opening, closing = draw.choice(NESTS)
        depth = draw.choice((5, 19, 21, 95, 110, 400, 3000, 20000))
        body = opening * depth + "1" + closing * depth
        source = body if opening.startswith("{%") else "{{ " + body + " }}"
    return Case(template=source, note=action)

"""Writes small GGUF files for tests, well-formed or wrong in one place."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q8_0": 8, "q4_k": 12, "q6_k": 14, "bf16": 30}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A metadata value with its type."""
    if isinstance(item, bool):
        return struct.pack("<IB", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, np.ndarray):
        kind = {"int32": 5, "float32": 6}[item.dtype.name]
        return struct.pack("<IIQ", 9, kind, item.size) + item.tobytes()
    return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(text(part) for part in item)


def gguf(
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, Sequence[int], int, bytes]],
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """tensors: (name, dimensions with the fastest first, ggml type, data)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(item) for key, item in metadata.items())
    offset = 0
    data = b""
    for name, shape, kind, payload in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        data += payload + b"\0" * (-len(payload) % alignment)
        offset = len(data)
    return head + b"\0" * (-len(head) % alignment) + data


def tiny(**changes: Any) -> tuple[dict[str, Any], list[tuple[str, Sequence[int], int, bytes]]]:
    """Metadata and f32 tensors of a llama model of 2 layers, 8 wide, 4 tokens."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64,
        "llama.embedding_length": 8, "llama.feed_forward_length": 16, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    shapes = {"token_embd.weight": (8, 4), "output_norm.weight": (8,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm.weight": (8,), "attn_q.weight": (8, 8), "attn_k.weight": (8, 4), "attn_v.weight": (8, 4),
                "attn_output.weight": (8, 8), "ffn_norm.weight": (8,), "ffn_gate.weight": (8, 16),
                "ffn_up.weight": (8, 16), "ffn_down.weight": (16, 8),
            }.items()
        }  # fmt: skip
    metadata |= changes
    metadata = {key: item for key, item in metadata.items() if item is not None}
    ones = np.ones
    return metadata, [(name, shape, 0, ones(shape, np.float32).tobytes()) for name, shape in shapes.items()]

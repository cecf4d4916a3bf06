"""Experts as files hold them -> one stack a matrix: the rows of all experts below one another, in their order (K8).

Files hold one tensor an expert (Hugging Face, old GGUF), gate and up of all experts in one (transformers 5), or stacks
already (GGUF). Stacks are made when asked for and not kept. Refuses gaps and experts that differ in shape or format.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ridgeline.formats.format import Bytes
from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import UserError

HF_ONE = re.compile(r"(model\.layers\.\d+\.)(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight")
HF_FUSED = re.compile(r"(model\.layers\.\d+\.mlp\.experts\.)(gate_up_proj|down_proj)")
GGUF_ONE = re.compile(r"(blk\.\d+\.ffn_)(gate|up|down)\.(\d+)\.weight")
HF_ROLES = {
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down",
}  # fmt: skip


def stacked(tensors: Mapping[str, StoredWeight], experts: int, source: str) -> dict[str, StoredWeight]:
    """The tensors of a model with `experts` experts a layer, under the names of models/weights.py."""
    kept: dict[str, StoredWeight] = {}
    single: dict[str, dict[int, StoredWeight]] = {}
    for name, weight in tensors.items():
        if match := HF_ONE.fullmatch(name):
            role = HF_ROLES.get(match[3], match[3])
            single.setdefault(f"{match[1]}mlp.experts.{role}", {})[int(match[2])] = weight
        elif match := GGUF_ONE.fullmatch(name):
            single.setdefault(f"{match[1]}{match[2]}_exps.weight", {})[int(match[3])] = weight
        elif match := HF_FUSED.fullmatch(name):
            kept |= _fused(match[1], match[2], weight, experts, source)
        else:
            kept[name.replace(".block_sparse_moe.gate.", ".mlp.gate.")] = weight
    return kept | {name: _stack(name, parts, experts, source) for name, parts in single.items()}


def _stack(name: str, parts: Mapping[int, StoredWeight], experts: int, source: str) -> StoredWeight:
    if sorted(parts) != list(range(experts)):
        raise UserError(f"{source}: {name} does not have experts 0 to {experts - 1}. Fetch it again.")
    ordered = [parts[index] for index in range(experts)]
    first = ordered[0]
    if any((w.rows, w.columns, w.format.name) != (first.rows, first.columns, first.format.name) for w in ordered):
        raise UserError(f"{source}: the experts of {name} differ in shape or format. Convert the file again.")
    if not first.format.by_rows:
        raise UserError(
            f"{source}: {name} is in {first.format.name}, whose scales span rows; experts need a format of rows. "
            "Take another copy of this model."
        )
    make = functools.partial(_joined, ordered)
    return StoredWeight(name, experts * first.rows, first.columns, first.format, make=make)


def _joined(parts: Sequence[StoredWeight]) -> Bytes:
    return np.concatenate([part.data for part in parts if part.data is not None])


def _fused(prefix: str, role: str, weight: StoredWeight, experts: int, source: str) -> dict[str, StoredWeight]:
    """[experts, gate rows then up rows, width], or down as it is."""
    if role == "down_proj":
        return {prefix + "down": weight}
    if weight.rows % (2 * experts):
        raise UserError(f"{source}: {weight.name} is not gate and up of {experts} experts. Fetch it again.")
    names = (prefix + "gate", prefix + "up")
    return {
        name: StoredWeight(
            name, weight.rows // 2, weight.columns, weight.format, make=functools.partial(_half, weight, experts, half)
        )
        for half, name in enumerate(names)
    }


def _half(weight: StoredWeight, experts: int, half: int) -> Bytes:
    if weight.data is None:
        raise UserError(f"{weight.name} has no bytes")
    return np.ascontiguousarray(weight.data.reshape(experts, 2, -1)[:, half]).reshape(-1)

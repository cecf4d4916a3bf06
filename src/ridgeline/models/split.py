"""A dense model as a mixture of experts that computes the same: `moe8:<model>` (K8).

The hidden width is cut into equal experts, all of them chosen for every token with weight 1. The weights' bits are the
dense model's own: gate and up only change their name, down is cut by columns. Refuses widths that do not divide, and
formats whose groups an expert would cut through.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import numpy as np

from ridgeline.formats.format import FORMATS, BlockFormat, Bytes
from ridgeline.formats.weight import StoredWeight
from ridgeline.kit.errors import UserError
from ridgeline.ops.route import Routing

from .spec import Experts, ModelSpec
from .weights import LayerWeights, ModelWeights

SPLIT = re.compile(r"moe([0-9]{1,3}):(.+)")


def split_spec(spec: ModelSpec, experts: int) -> ModelSpec:
    """Uniform scores are 1 / experts each, exactly, when experts is a power of two; `scale` makes them 1."""
    if spec.family not in ("llama", "mistral") or spec.experts is not None:
        raise UserError(
            f"{spec.name} is of family {spec.family}; only llama and mistral models are split into experts."
        )
    if experts < 1 or experts & (experts - 1) or spec.ffn % experts:
        raise UserError(
            f"{spec.name} has a hidden width of {spec.ffn}; it cannot be split into {experts} experts exactly. "
            "Take a power of two that divides it."
        )
    routing = Routing(experts, experts, scale=float(experts))
    return replace(
        spec, family="mixtral", name=f"moe{experts}:{spec.name}", experts=Experts(routing, spec.ffn // experts)
    )


def split_weights(weights: ModelWeights, experts: int) -> ModelWeights:
    """Lazily: nothing is read until a stack is packed."""
    return replace(weights, layers=tuple(_split_layer(layer, experts) for layer in weights.layers))


def _split_layer(layer: LayerWeights, experts: int) -> LayerWeights:
    gate, up, down = layer.gate, layer.up, layer.down
    if gate is None or up is None or down is None:
        raise UserError("this model has a layer without an MLP; it cannot be split into experts.")
    plain = FORMATS.get("f32")
    has_numbers = gate.stored is not None or gate.make is not None
    zeros = np.zeros(4 * experts * gate.columns, np.uint8) if has_numbers else None
    router = StoredWeight("router", experts, gate.columns, plain, zeros)
    return replace(
        layer, gate=None, up=None, down=None, router=router, expert_gate=gate, expert_up=up,
        expert_down=_cut(down, experts),
    )  # fmt: skip


def _cut(down: StoredWeight, experts: int) -> StoredWeight:
    """[width, ffn] -> [experts * width, ffn / experts]: columns of expert e, below those of e - 1."""
    columns = down.columns // experts
    if not isinstance(down.format, BlockFormat):
        raise UserError(f"{down.name} is stored in {down.format.name}, whose scales span columns. Take another file.")
    if columns % down.format.group:
        raise UserError(
            f"{down.name} is stored in groups of {down.format.group} ({down.format.name}), which an expert of "
            f"{columns} columns would cut through. Take a file with smaller groups."
        )
    make = None if down.stored is None and down.make is None else functools.partial(_columns, down, experts)
    return StoredWeight(down.name, down.rows * experts, columns, down.format, make=make)


def _columns(down: StoredWeight, experts: int) -> Bytes:
    if down.data is None:
        raise UserError(f"{down.name} has no bytes")
    rows = down.data.reshape(down.rows, experts, -1)
    return np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(-1)

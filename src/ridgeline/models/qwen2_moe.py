"""Qwen2-MoE: Qwen2 (biases on q, k, v) with a mixture of experts and a shared one behind a sigmoid gate (K8)."""

from __future__ import annotations

from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .llama import llama
from .spec import ModelSpec
from .weights import ModelWeights


def qwen2_moe(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    return llama(r, spec, w)  # experts, biases and the shared expert are in the spec and the weights

"""Qwen3-MoE: Qwen3 (qk-norm) whose MLP is a mixture of many small experts, eight of 128 (K8)."""

from __future__ import annotations

from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .llama import llama
from .spec import ModelSpec
from .weights import ModelWeights


def qwen3_moe(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    return llama(r, spec, w)  # the experts are in the spec, the gains in the weights

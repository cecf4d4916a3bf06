"""Qwen2 and Qwen2.5: Llama with biases on q, k and v; larger layers of some sizes can read through a window."""

from __future__ import annotations

from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .llama import llama
from .spec import ModelSpec
from .weights import ModelWeights


def qwen2(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    return llama(r, spec, w)  # the biases are in the weights: parts.self_attention adds them when spec.qkv_bias

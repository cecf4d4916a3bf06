"""Qwen3, dense: Llama with an RMS norm of each q and k head before rope (qk-norm) and no biases."""

from __future__ import annotations

from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .llama import llama
from .spec import ModelSpec
from .weights import ModelWeights


def qwen3(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    return llama(r, spec, w)  # the gains are in the weights: parts.self_attention norms heads when spec.qk_norm

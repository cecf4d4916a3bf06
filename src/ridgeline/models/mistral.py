"""Mistral: Llama whose layers read back a sliding window (v0.1); later versions read everything."""

from __future__ import annotations

from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .llama import llama
from .spec import ModelSpec
from .weights import ModelWeights


def mistral(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    return llama(r, spec, w)  # the windows are in the spec: parts.self_attention hands them on

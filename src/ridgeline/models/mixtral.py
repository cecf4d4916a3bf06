"""Mixtral: Llama (or Mistral, with a window) whose MLP is a mixture of experts, two of eight by softmax (K8)."""

from __future__ import annotations

from ridgeline.ops.op import Value
from ridgeline.ops.program import Recorder

from .llama import llama
from .spec import ModelSpec
from .weights import ModelWeights


def mixtral(r: Recorder, spec: ModelSpec, w: ModelWeights) -> Value:
    return llama(r, spec, w)  # the experts are in the spec: parts.mixture takes the MLP's place

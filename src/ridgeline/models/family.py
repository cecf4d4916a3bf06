"""The table of model families. A family is a function that records a Program; nothing else describes the model."""

from __future__ import annotations

from collections.abc import Callable

from ridgeline.kit.registry import Registry
from ridgeline.memory.storage.recurrent import STORAGE as RECURRENT
from ridgeline.ops.op import Value
from ridgeline.ops.program import Program, Recorder
from ridgeline.ops.protocols import KvRetention, KvStorage

from .spec import ModelSpec
from .weights import ModelWeights

Family = Callable[[Recorder, ModelSpec, ModelWeights], Value]

FAMILIES: Registry[Family] = Registry(
    "model family",
    __package__,
    {
        "llama": ".llama:llama",
        "mistral": ".mistral:mistral",
        "qwen2": ".qwen2:qwen2",
        "qwen3": ".qwen3:qwen3",
        "gemma3": ".gemma3:gemma3",
        "mixtral": ".mixtral:mixtral",
        "qwen2_moe": ".qwen2_moe:qwen2_moe",
        "qwen3_moe": ".qwen3_moe:qwen3_moe",
        "mamba2": ".mamba2:mamba2",
    },
)


def record_program(
    spec: ModelSpec, weights: ModelWeights, storage: KvStorage, retention: KvRetention | None = None
) -> Program:
    """The Program of a model whose KV is kept in `storage` as `retention` says; symbolic in the batch."""
    recorder = Recorder(spec.name, storage, retention, RECURRENT)
    FAMILIES.get(spec.family)(recorder, spec, weights)
    return recorder.finish()

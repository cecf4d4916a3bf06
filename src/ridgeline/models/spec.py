"""ModelSpec: the numbers of an architecture, read from config.json or GGUF metadata. Frozen; no weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ridgeline.ops.protocols import Floats
from ridgeline.ops.recurrent import StateShape
from ridgeline.ops.route import Routing


@dataclass(frozen=True)
class Rope:
    """Rotary embedding. `interleaved`: pairs (0,1), (2,3).. as GGUF's llama files store them; else halves.

    scaling: None, or ("linear", factor), or ("llama3", factor, low_freq_factor, high_freq_factor, original_context),
    or ("factors", f0, f1, ...): the i-th frequency divided by f_i, as `rope_freqs` of GGUF files says.
    """

    dim: int
    base: float
    positions: int
    interleaved: bool = False
    scaling: tuple[str | float, ...] | None = None

    @functools.lru_cache(maxsize=8)  # noqa: B019  frozen and hashable: one table per distinct rope
    def tables(self) -> tuple[Floats, Floats]:
        """cos, sin: [positions, dim/2] f32, computed as transformers does (f32 frequencies, f32 angles)."""
        exponent = np.arange(0, self.dim, 2, dtype=np.float32) / self.dim
        frequency: Floats = np.reciprocal(np.power(np.float32(self.base), exponent, dtype=np.float32))
        if self.scaling and self.scaling[0] == "linear":
            frequency = (frequency / float(self.scaling[1])).astype(np.float32)
        elif self.scaling and self.scaling[0] == "factors":
            frequency = (frequency / np.array([float(x) for x in self.scaling[1:]])).astype(np.float32)
        elif self.scaling and self.scaling[0] == "llama3":
            frequency = _llama3(frequency, *(float(x) for x in self.scaling[1:]))
        angles = np.arange(self.positions, dtype=np.float32)[:, None] * frequency.astype(np.float32)[None, :]
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _llama3(frequency: Floats, factor: float, low: float, high: float, context: float) -> Floats:
    """Llama 3.1 frequency scaling (transformers modeling_rope_utils)."""
    wavelength = 2 * math.pi / frequency
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * frequency / factor + smooth * frequency
    scaled = np.where(wavelength > context / low, frequency / factor, frequency)
    middle = (wavelength <= context / low) & (wavelength >= context / high)
    return np.where(middle, blended, scaled).astype(np.float32)


# What every model of a family has, whatever its file says.
TRAITS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "qwen2": {"qkv_bias": True},
        "qwen3": {"qk_norm": True},
        "gemma3": {"qk_norm": True, "post_norms": True},
        "qwen2_moe": {"qkv_bias": True},
        "qwen3_moe": {"qk_norm": True},
    }
)


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of every layer. ffn: hidden width of one; shared_ffn: of the shared one, 0 for none."""

    routing: Routing
    ffn: int
    shared_ffn: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """`heads * head_dim` need not equal `width` (A8). windows[i]: keys layer i reads back, 0 for all.

    local_rope: of layers with a window, where it differs. query_pre_scale: the number whose square root divides the
    scores, 0 for head_dim. qk_norm, post_norms: layers have these gains.
    """

    family: str  # file stem in models/
    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    context: int
    norm_eps: float
    rope: Rope
    tied: bool
    qkv_bias: bool = False
    activation: str = "silu"
    windows: tuple[int, ...] = ()
    bos: int | None = None
    eos: tuple[int, ...] = ()
    add_bos: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    local_rope: Rope | None = None
    query_pre_scale: float = 0.0
    experts: Experts | None = None  # None: every layer has one MLP of width ffn
    state: StateShape | None = None  # of layers that keep a recurrent state instead of keys and values
    conv_bias: bool = False
    proj_bias: bool = False

    @property
    def query_scale(self) -> float:
        """What multiplies the scores of attention."""
        return 1 / math.sqrt(self.query_pre_scale or self.head_dim)

    def reaching(self, positions: int) -> ModelSpec:
        """The same with ropes for at least so many positions: what keeps a bounded past may go beyond its context."""
        if positions <= min(rope.positions for rope in (self.rope, self.local_rope or self.rope)):
            return self
        local = self.local_rope and replace(self.local_rope, positions=max(positions, self.local_rope.positions))
        return replace(self, rope=replace(self.rope, positions=max(positions, self.rope.positions)), local_rope=local)

    def window_of(self, layer: int) -> int:
        return self.windows[layer] if self.windows else 0

    def rope_of(self, layer: int) -> Rope:
        return self.local_rope if self.local_rope is not None and self.window_of(layer) else self.rope

"""Random weights in any writable format: right shapes, right bytes, sane magnitudes, made in seconds.

Packed bytes of most formats are drawn directly (random levels under a fixed scale) instead of quantising random
numbers. The stream depends on the seed and the tensor's place only, so the same model is the same everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import NormalDist
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ridgeline.formats.format import FORMATS, Bytes
from ridgeline.formats.weight import StoredWeight
from ridgeline.ops.protocols import Floats

DEVIATION = 0.02  # initializer_range of the published configurations
GAIN_DEVIATION = 0.1  # norms differ from 1, so that leaving one out shows
LEVELS_Q4 = np.sqrt((16**2 - 1) / 12)  # standard deviation of a uniform nibble
LEVELS_Q5 = np.sqrt((32**2 - 1) / 12)
LEVELS_Q8 = np.sqrt((255**2 - 1) / 12)
CHUNK = 1 << 22
ELEMENTS = ("f32", "f16", "bf16")
BLOCKED = ("q8_0", "q4_1", "q4_0", "q5_0")  # blocks of 32
# Numbers of a recurrent layer from uniform ones in [0, 1), as Mamba2's published initialisation spreads them: decays of
# -1 to -16, time steps of 0.001 to 0.1 (through the inverse of softplus), skips of 1; taps even around 0.
MIXER_DRAWS: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {
        "decay": lambda u: -1 - 15 * u,
        "rate_bias": lambda u: np.log(np.expm1(0.001 * 100**u)),
        "skip": lambda u: np.ones_like(u),
        "conv": lambda u: u - np.float32(0.5),
    }
)


def filled(weight: StoredWeight, role: str, seed: int, index: int) -> StoredWeight:
    """The descriptor with numbers, made on demand: gains around 1, the rest around 0 with deviation DEVIATION."""
    return replace(weight, make=functools.partial(_draw, weight, role, seed, index))


def _draw(weight: StoredWeight, role: str, seed: int, index: int) -> Bytes:
    generator = np.random.Generator(np.random.SFC64([seed, index]))
    if role in MIXER_DRAWS:
        values = MIXER_DRAWS[role](generator.random((weight.rows, weight.columns), np.float32))
        return weight.format.pack(values.astype(np.float32))
    if role.endswith("norm"):
        values = 1 + GAIN_DEVIATION * generator.standard_normal((weight.rows, weight.columns), np.float32)
        return weight.format.pack(values.astype(np.float32))
    if weight.format.name in BLOCKED:
        return _draw_blocks(weight, generator)
    if weight.format.name in ELEMENTS:
        return _draw_table(weight, generator)
    values = DEVIATION * generator.standard_normal((weight.rows, weight.columns), np.float32)
    return weight.format.pack(values.astype(np.float32))


@functools.cache
def _quantiles() -> Floats:
    """65,536 equally likely values of a normal distribution."""
    normal = NormalDist(0.0, DEVIATION)
    return np.array([normal.inv_cdf((i + 0.5) / 65_536) for i in range(65_536)], np.float32)


def _draw_table(weight: StoredWeight, generator: np.random.Generator) -> Bytes:
    """Element formats: a random 16-bit number picks one of the packed quantiles."""
    element = FORMATS.get(weight.format.name).pack(_quantiles()[:, None])
    kind: npt.DTypeLike = np.uint32 if weight.format.name == "f32" else np.uint16
    table = element.view(kind)
    data = np.empty(weight.rows * weight.columns, kind)
    for start in range(0, data.size, CHUNK):
        part = data[start : start + CHUNK]
        part[:] = table[generator.integers(0, 65_536, part.size, np.uint16)]
    return data.view(np.uint8)


def _draw_blocks(weight: StoredWeight, generator: np.random.Generator) -> Bytes:
    """Blocks of 32: random levels, one scale for all (and the minimum that centres them)."""
    levels = {"q8_0": LEVELS_Q8, "q5_0": LEVELS_Q5, "q4_0": LEVELS_Q4, "q4_1": LEVELS_Q4}[weight.format.name]
    if weight.format.name != "q4_1":
        head = np.array([DEVIATION / levels], np.float16)
    else:
        scale = np.float16(DEVIATION / LEVELS_Q4)
        head = np.array([scale, np.float16(-7.5) * scale], np.float16)
    blocks = np.empty((weight.nbytes // weight.format.nbytes(1, 32), weight.format.nbytes(1, 32)), np.uint8)
    blocks[:, : head.nbytes] = head.view(np.uint8)
    if weight.format.name in ("q4_0", "q5_0"):  # their levels lie around -1/2: scales of both signs bring the mean to 0
        blocks[1::2, : head.nbytes] = (-head).view(np.uint8)
    step = CHUNK // 32
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step, head.nbytes :]
        part[:] = np.frombuffer(generator.bytes(part.size), np.uint8).reshape(part.shape)
        if weight.format.name == "q8_0":  # quantisers use -127 to 127
            np.maximum(part.view(np.int8), np.int8(-127), out=part.view(np.int8))
    return blocks.reshape(-1)

"""Transfers: kept state moved before a step: copy on write, tiers, packing. Frozen; the runner executes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class CopyBlock:
    """Block `source` of a group's pool to block `target`, all layers (copy on write, C4)."""

    group: int
    source: int
    target: int
    program: str = "model"


@dataclass(frozen=True, slots=True)
class SaveBlock:
    """A block's bytes to the tier store under `key` (C7, B10). tier: "host" or "disk"."""

    group: int
    block: int
    key: int
    tier: str = "host"
    program: str = "model"


@dataclass(frozen=True, slots=True)
class LoadBlock:
    """Saved bytes back into a block; they stay saved."""

    group: int
    key: int
    block: int
    program: str = "model"


@dataclass(frozen=True, slots=True)
class Parcel:
    """State of a sequence's first `tokens` tokens that another engine computed (E8). Its block i, in every group, is
    saved under first_key + i; they are forgotten by whoever saved them."""

    first_key: int
    tokens: int


@dataclass(frozen=True, slots=True)
class MoveSaved:
    """Saved bytes to another tier; tier "": forgotten."""

    key: int
    tier: str = ""
    program: str = "model"


@dataclass(frozen=True, slots=True)
class MoveTokens:
    """Kept tokens from slots `sources` to `targets` of one sequence, all layers: an accepted branch of a tree (I9)."""

    group: int
    blocks: Ints
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    program: str = "model"


@dataclass(frozen=True, slots=True)
class PackTokens:
    """Of the first `slots` slots of a sequence keep, for every layer and kv head apart, the first `sinks`, the last
    `recent`, and the `heavy` with most attention mass of the others, packed in order from slot 0 (C10)."""

    group: int
    blocks: Ints
    slots: int
    sinks: int
    heavy: int
    recent: int
    program: str = "model"


@dataclass(frozen=True, slots=True)
class CopyState:
    """The recurrent state in slot `source` to slot `target`: a snapshot taken, or restored (K11)."""

    source: int
    target: int
    program: str = "model"


Transfer = CopyState | CopyBlock | SaveBlock | LoadBlock | MoveSaved | MoveTokens | PackTokens

"""Op: one operator kind = meaning + cost + cases, declared once in ops/<kind>.py. Line: one application of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ridgeline.kit.cost import Cost

from .batch import BatchShape
from .protocols import Weight

Meaning = Callable[..., Any]  # (step: StepView, line: Line, *inputs: Tensor) -> Tensor
CostOf = Callable[[BatchShape, "Line"], Cost]


@dataclass(frozen=True, slots=True)
class Op:
    """meaning: reference body in PyTorch (imports it inside). cost: see Cost; accepts arrays in the shape.
    error: largest allowed difference of a body from the meaning, relative to the largest |output|,
    by weight format name without options ("" for formats not named). determinism: see DESIGN §3.5:
    "bitwise", "same-build" or "none".
    """

    kind: str
    meaning: Meaning
    cost: CostOf
    error: Mapping[str, float] = field(default_factory=lambda: {"": 1e-5})
    cases: tuple[Mapping[str, Any], ...] = ()
    determinism: str = "bitwise"

    def error_for(self, format_name: str) -> float:
        return self.error.get(format_name.partition(":")[0], self.error[""])


TOKENS = "tokens"  # one row per token of the flattened batch
LOGITS = "logits"  # one row per wanted logit row


@dataclass(frozen=True, slots=True)
class Value:
    """An intermediate [rows, width] f32; rows is TOKENS or LOGITS."""

    id: int
    rows: str
    width: int

    def count(self, batch: BatchShape) -> Any:
        return batch.tokens if self.rows == TOKENS else batch.logit_rows


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One operator application. `name` is e.g. "layers.3.qkv"; `part` (the last word) groups lines in tables."""

    index: int
    op: Op
    name: str
    layer: int | None
    inputs: tuple[Value, ...]
    output: Value
    weights: tuple[Weight, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> str:
        return self.name.rpartition(".")[2]

    def cost(self, batch: BatchShape) -> Cost:
        return self.op.cost(batch, self)

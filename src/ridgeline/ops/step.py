"""StepView: what a meaning sees of the step it runs in. Filled by run/; tensors are torch tensors."""

from __future__ import annotations

from typing import Any, Protocol

from .protocols import KvView, StateView, Weight


class StepView(Protocol):
    token_ids: Any  # [tokens] int64
    positions: Any  # [tokens] int64, absolute
    bounds: tuple[tuple[int, int], ...]  # rows [a, b) of each batch entry
    trees: tuple[Any, ...]  # of each batch entry: [tokens, tokens] bool, ancestor or self; None: a chain
    logit_tokens: Any  # [logit_rows] int64: token row of each logit row
    rows: tuple[Any, ...]  # [logit_rows] state.plan.LogitRow
    results: list[Any]  # [logit_rows] state.plan.RowResult, filled by `sample`

    def tensor(self, weight: Weight) -> Any:
        """[rows, columns] f32, as the stored bits mean it."""
        ...

    def kv(self, group: int, layer: int) -> KvView:
        """State of layer number `layer` of a KvGroup ("group" and "pool_layer" of the attend line)."""
        ...

    def state(self, layer: int) -> StateView:
        """Recurrent state of layer number `layer` of those that keep one ("state_layer" of conv and scan lines)."""
        ...

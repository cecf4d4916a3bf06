"""Fields: values of a file's metadata, each checked for presence, type and range before anyone uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ridgeline.kit.errors import UserError


@dataclass(frozen=True, slots=True)
class Fields:
    """`values` of `source` (named in errors). A missing field without a default, or one out of range: UserError."""

    values: Mapping[str, Any]
    source: str

    def integer(self, key: str, most: int, default: int | None = None, least: int = 1) -> int:
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._refuse(key, value, f"a whole number from {least} to {most}")
        return int(value)

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        value = self._value(key, default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not least <= value <= most:  # NaN is in no range, and an integer may be too large for a float
            self._refuse(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            self._refuse(key, value, "true or false")
        return bool(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            self._refuse(key, value, "text")
        return str(value)

    def is_set(self, key: str) -> bool:
        """Whether a number, flag or list is there and is not zero, false or empty."""
        value = self.values.get(key)
        return bool(len(value)) if isinstance(value, np.ndarray) else bool(value)

    def table(self, key: str) -> Fields | None:
        """A nested object; None when absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._refuse(key, value, "an object")
        return Fields(value, f"{self.source} {key}")

    def token_ids(self, key: str, vocabulary: int) -> tuple[int, ...]:
        """An id or a list of ids, each inside the vocabulary; empty when absent or null."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
                self._refuse(key, token, f"a token id below {vocabulary}")
        return tuple(ids)

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise UserError(f"{self.source} has no {key}, which describes the model. The file is incomplete.")
        return value

    def _refuse(self, key: str, value: Any, wanted: str) -> None:
        try:
            shown = repr(value)
        except RecursionError:
            shown = "nested too deep"
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise UserError(f"{self.source}: {key} is {shown}; it must be {wanted}.")

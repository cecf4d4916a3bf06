"""A table of names that can be grepped; entries are imported only when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from .errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """name -> "module:attribute", resolved lazily, relative to `package`.

    Unknown names raise UserError that lists the known ones.
    """

    def __init__(self, kind: str, package: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._package = package
        self._entries = dict(entries)

    def names(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def get(self, name: str) -> T:
        entry = self._entries.get(name)
        if entry is None:
            raise UserError(f"unknown {self.kind} {name!r}. Known: {', '.join(sorted(self._entries))}.")
        module, _, attribute = entry.partition(":")
        return cast(T, getattr(importlib.import_module(module, self._package), attribute))

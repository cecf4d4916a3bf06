"""Published model shapes by name (catalogue.json, each naming its source), for `random:<shape>` and for counting."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ridgeline.kit.errors import UserError

from .config import spec_from_config
from .spec import ModelSpec


@functools.cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    return MappingProxyType(json.loads(Path(__file__).with_name("catalogue.json").read_text("utf-8")))


def shapes() -> list[str]:
    """Names of the catalogue."""
    return list(_table())


def source(name: str) -> str:
    """The repository whose config.json an entry copies."""
    return str(_entry(name)["source"])


def shape(name: str) -> ModelSpec:
    """The spec of a catalogue entry. UserError with suggestions for an unknown name."""
    return spec_from_config(_entry(name)["config"], name, f"catalogue entry {name}")


def _entry(name: str) -> Mapping[str, Any]:
    entry = _table().get(name)
    if entry is None:
        raise UserError(f"unknown shape {name!r}. {suggest(name, shapes())}")
    return entry


def suggest(name: str, known: Iterable[str]) -> str:
    """The closest known names, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."

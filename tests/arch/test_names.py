"""Names (STYLE §1): the room's noun, not a word that says nothing."""

from __future__ import annotations

import re

import pytest

from .source import PACKAGE, definitions, modules, shown, words

EMPTY_WORDS = {"manager", "handler", "helper", "helpers", "util", "utils", "impl", "misc"}
VERSIONED = re.compile(r"_?v\d+$|_(new|old)$", re.IGNORECASE)
VERSIONED_FORMATS = {"gguf_v3"}  # a version that is part of a published name


def is_empty_name(name: str) -> bool:
    is_class = name[:1].isupper()
    is_versioned = bool(VERSIONED.search(name)) and name not in VERSIONED_FORMATS
    return bool(set(words(name)) & EMPTY_WORDS) or (is_class and "base" in words(name)) or is_versioned


def test_definitions_say_what_they_are() -> None:
    wrong = [
        f"{shown(path, line)} {name}" for path in modules() for name, line in definitions(path) if is_empty_name(name)
    ]
    assert not wrong


def test_files_say_what_they_hold() -> None:
    stems = {path.stem: path for suffix in ("*.py", "*.cpp", "*.h") for path in PACKAGE.rglob(suffix)}
    wrong = [str(path) for stem, path in stems.items() if is_empty_name(stem) or stem in ("base", "common", "types")]
    assert not wrong


@pytest.mark.parametrize("name", ["CacheManager", "run_impl", "BaseStorage", "string_utils", "plan_v2", "step_old"])
def test_the_rule_finds(name: str) -> None:
    assert is_empty_name(name)


@pytest.mark.parametrize("name", ["Storage", "rope_base", "signal_received", "Improper", "gguf_v3"])
def test_the_rule_leaves(name: str) -> None:
    assert not is_empty_name(name)

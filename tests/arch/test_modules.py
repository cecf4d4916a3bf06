"""Every module opens by saying what it owns (STYLE §4), keeps no state, and asserts nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from .source import modules, shown, tree

DOCSTRING_LINES = 6
MUTABLE_CALLS = {"dict", "list", "set", "bytearray", "deque", "defaultdict", "Counter"}


def test_modules_open_with_a_short_docstring() -> None:
    wrong = []
    for path in modules():
        docstring = ast.get_docstring(tree(path))
        lines = docstring.count("\n") + 1 if docstring else 0
        if not 1 <= lines <= DOCSTRING_LINES:
            wrong.append(f"{shown(path, 1)} {lines} lines")
    assert not wrong


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in MUTABLE_CALLS


def module_state(path: Path) -> Iterator[tuple[int, str]]:
    """`global`, and containers bound at module level to a name that is not written as a constant."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
    for node in tree(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            is_ours = isinstance(target, ast.Name) and not target.id.startswith("__")
            if is_ours and not target.id.isupper() and is_mutable(node.value):  # type: ignore[attr-defined,union-attr]
                yield node.lineno, target.id  # type: ignore[union-attr]


def test_modules_keep_no_state() -> None:
    assert not [f"{shown(path, line)} {what}" for path in modules() for line, what in module_state(path)]


def test_no_assert_in_the_package() -> None:
    """UserError is for people, InvariantError for us; an assert vanishes under python -O."""
    wrong = [
        shown(path, node.lineno) for path in modules() for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)
    ]
    assert not wrong

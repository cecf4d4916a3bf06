"""How the architecture tests read the package: its files, syntax trees and the words inside names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "ridgeline"
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def modules(*rooms: str) -> list[Path]:
    """Python files of the named rooms; of the whole package when none is named."""
    folders = [PACKAGE / room for room in rooms] or [PACKAGE]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def shown(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def words(name: str) -> list[str]:
    """ "StepPlan_v2" -> ["step", "plan", "v", "2"]."""
    return [word.lower() for word in WORD.findall(name)]


def definitions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, line) of every class and function."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


def dotted(node: ast.expr) -> str:
    """ "os.environ" of an attribute chain; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""

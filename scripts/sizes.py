"""The size gate: size is a smell, so a large thing must say why in its file's head (STYLE §4).

File > 400 lines, function > 60 lines, > 6 parameters besides self, class > 15 methods: the file's first
20 lines need one line "size: <reason>". Native kernels are exempt from function length, not from file length.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, FUNCTION_LINES, PARAMETERS, METHODS, HEAD_LINES = 400, 60, 6, 15, 20
FOLDERS = ("src", "tests", "bench", "scripts")
SUFFIXES = (".py", ".cpp", ".h", ".inc")
REASON = re.compile(r"\bsize: +\S+")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def function_excess(node: Function) -> Iterator[str]:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > FUNCTION_LINES:
        yield f"line {node.lineno}: {node.name} has {lines} lines (limit {FUNCTION_LINES})"
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    parameters = [argument.arg for argument in named if argument.arg not in ("self", "cls")]
    if len(parameters) > PARAMETERS:
        yield f"line {node.lineno}: {node.name} has {len(parameters)} parameters (limit {PARAMETERS})"


def excess(path: Path, text: str) -> Iterator[str]:
    """What is too large in a file, in words."""
    lines = text.count("\n")
    if lines > FILE_LINES:
        yield f"{lines} lines (limit {FILE_LINES})"
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield from function_excess(node)
        elif isinstance(node, ast.ClassDef):
            methods = sum(isinstance(member, Function) for member in node.body)
            if methods > METHODS:
                yield f"line {node.lineno}: {node.name} has {methods} methods (limit {METHODS})"


def main(root: Path) -> int:
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*")) if path.suffix in SUFFIXES]
    failures = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        found = list(excess(path, text))
        if found and not REASON.search("\n".join(text.splitlines()[:HEAD_LINES])):
            failures += 1
            print(f"{path.relative_to(root)}: {'; '.join(found)}. Make it smaller, or say why: 'size: <reason>'.")
    print(f"{len(paths)} files, {failures} too large without a reason")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1]))

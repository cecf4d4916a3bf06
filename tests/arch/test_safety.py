"""What the package never does: run text as code, unpickle, open a shell, read hidden settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .source import PACKAGE, dotted, modules, shown, tree

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen", "os.getenv", "os.putenv"}
KEYWORDS = {"shell": True, "allow_pickle": True, "trust_remote_code": True}
ENVIRONMENT = {"os.environ", "environ"}
OUR_VARIABLE = "RIDGELINE_HOME"


def imports(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]}
    return set()


def reads_only_ours(node: ast.AST) -> bool:
    """os.environ["RIDGELINE_HOME"] or os.environ.get("RIDGELINE_HOME", ...)."""
    if isinstance(node, ast.Subscript) and dotted(node.value) in ENVIRONMENT:
        key: ast.expr | None = node.slice
    elif isinstance(node, ast.Call) and dotted(node.func) in {f"{name}.get" for name in ENVIRONMENT}:
        key = node.args[0] if node.args else None
    else:
        return False
    return isinstance(key, ast.Constant) and key.value == OUR_VARIABLE


def dangers(module: ast.Module) -> Iterator[tuple[int, str]]:
    allowed = {id(inner) for node in ast.walk(module) if reads_only_ours(node) for inner in ast.walk(node)}
    for node in ast.walk(module):
        if found := imports(node) & MODULES:
            yield node.lineno, f"import {found.pop()}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            if dotted(node.func) in CALLS:
                yield node.lineno, dotted(node.func)
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in KEYWORDS and value == KEYWORDS[keyword.arg]:
                    yield node.lineno, f"{keyword.arg}={value}"
        is_environment = isinstance(node, ast.Name | ast.Attribute) and dotted(node) in ENVIRONMENT
        if is_environment and id(node) not in allowed:
            yield node.lineno, "the environment, beyond RIDGELINE_HOME"  # type: ignore[attr-defined]


def test_nothing_dangerous_in_the_package() -> None:
    wrong = [f"{shown(path, line)} {what}" for path in modules() for line, what in dangers(tree(path))]
    assert not wrong


def test_native_code_reads_no_environment_and_starts_no_program() -> None:
    native = [path for suffix in ("*.cpp", "*.h") for path in PACKAGE.rglob(suffix)]
    call = re.compile(r"\b(getenv|setenv|system|popen|execv\w*)\s*\(")
    wrong = [shown(path, 1) for path in native if call.search(path.read_text(encoding="utf-8"))]
    assert not wrong


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "torch.load(path)",
        "subprocess.run(command, shell=True)",
        "numpy.load(path, allow_pickle=True)",
        "os.environ['HOME']",
        "os.getenv('RIDGELINE_HOME')",
        "from os import environ\nenviron.get('X')",
    ],
)
def test_the_rule_finds(code: str) -> None:
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["os.environ.get('RIDGELINE_HOME', '~/.cache')", "model.eval()", "re.compile('x')", "torch.tensor(1)"]
)
def test_the_rule_leaves(code: str) -> None:
    assert not list(dangers(ast.parse(code)))


def test_paths_exist() -> None:
    """Guards the others against an empty file list."""
    assert Path(PACKAGE / "kit" / "errors.py") in modules("kit")

"""Documents name what exists: files, verbs and options; both READMEs give the same commands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.core
import typer.main

from ridgeline.cli.main import app

from .source import PACKAGE, ROOT

DOCUMENTS = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
PATH = re.compile(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9.-]+)?)`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
VERB = re.compile(r"\bridgeline ([a-z]+)\b([^`\n]*)")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_paths_and_links_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    homes = (ROOT, PACKAGE, document.parent)
    paths = [path for path in PATH.findall(text) if "NAME" not in path]
    missing = [path for path in paths if not any((home / path).exists() for home in homes)]
    missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_commands_have_those_options(document: Path) -> None:
    wrong, verbs = [], options_of_verbs()
    text = re.sub(r"```python\n.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for verb, rest in VERB.findall(text):
        if verb not in verbs:
            wrong.append(verb)
            continue
        known = verbs[verb] | {"--help"}
        wrong += [f"{verb} {option}" for option in OPTION.findall(rest) if option not in known]
    assert not wrong


def options_of_verbs() -> dict[str, set[str]]:
    """As the command line has them."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {
        name: {written for one in verb.params for written in (*one.opts, *one.secondary_opts)}
        for name, verb in group.commands.items()
    }


def test_both_readmes_give_the_same_commands() -> None:
    english, chinese = (FENCE.findall((ROOT / name).read_text("utf-8")) for name in ("README.md", "README.zh-CN.md"))
    assert english == chinese and len(english) >= 8


def test_the_examples_are_python() -> None:
    blocks = [code for path in DOCUMENTS for kind, code in FENCE.findall(path.read_text("utf-8")) if kind == "python"]
    assert blocks and all(ast.parse(code) for code in blocks)

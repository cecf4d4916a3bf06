"""Mutants of the code that names intervals: at every place where it says one name, every other one is put there, and
the life of test_intervals is lived again. One that goes unnoticed would be the release in which two histograms changed
places (vllm#10853)."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

from ridgeline.perf import account, intervals, ledger, phases
from ridgeline.perf.intervals import INTERVALS
from ridgeline.state.plan import HOLDS

from . import test_intervals as life

# What a word of the source may be mistaken for. intervals.py names its own, the others say activities.
NAMES = ("UNTRIED", "RESTORE", "WAIT", "PREEMPTED", "GAP")
ACTIVITIES = ("PREFILL", "DECODE", "RECOMPUTE", "DRAFT", "VERIFY")
TEXTS = tuple(name for name in INTERVALS if name in ("residual", "deliver", "transfer", "client_stall"))
ALIKE = (NAMES, ACTIVITIES, TEXTS, HOLDS)


def functions(module: ModuleType) -> dict[tuple[str, int], FunctionType]:
    """All of a module and of its classes, by name and line."""
    found: dict[tuple[str, int], FunctionType] = {}
    owners = [module, *(one for _, one in inspect.getmembers(module, inspect.isclass))]
    for owner in owners:
        for value in vars(owner).values():
            plain = getattr(value, "__func__", value)
            if isinstance(plain, FunctionType) and plain.__module__ == module.__name__:
                found[plain.__code__.co_name, plain.__code__.co_firstlineno] = plain
    return found


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def word(node: ast.AST) -> str | None:
    """The interval's word at this place of the source, if there is one."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return node.id
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def changed(node: ast.Name | ast.Constant, to: str) -> None:
    if isinstance(node, ast.Name):
        node.id = to
    else:
        node.value = to


def mutants(module: ModuleType) -> Iterator[tuple[str, FunctionType, CodeType]]:
    """(what was changed, the function, its code with the change)"""
    path = str(module.__file__)
    tree = ast.parse(Path(path).read_text("utf-8"))
    own = functions(module)
    for body in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        places = [node for part in body.body for node in ast.walk(part) if isinstance(node, ast.Name | ast.Constant)]
        for place in places:
            said = word(place)
            for other in [one for alike in ALIKE if said in alike for one in alike if one != said]:
                changed(place, other)
                for code in codes(compile(tree, path, "exec")):
                    function = own.get((code.co_name, code.co_firstlineno))
                    if code.co_name == body.name and function is not None and function.__code__ != code:
                        yield f"{body.name}:{place.lineno} {said} -> {other}", function, code
                changed(place, str(said))


def walls() -> list[dict[str, int]]:
    return [life.lived().wall_ns, life.vanished().wall_ns]


@pytest.mark.parametrize(
    "module", [intervals, phases, account, ledger], ids=lambda one: one.__name__.rpartition(".")[2]
)
def test_every_mutant_is_noticed(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right, tried, alive = [life.expected(), life.VANISHED], 0, []
    for what, function, code in mutants(module):
        tried += 1
        with monkeypatch.context() as patch:
            patch.setattr(function, "__code__", code)
            try:
                is_noticed = walls() != right
            except (KeyError, IndexError, NameError, ValueError):
                is_noticed = True
        if not is_noticed:
            alive.append(what)
    assert walls() == right
    assert tried and not alive, (tried, alive)


@pytest.mark.parametrize("other", INTERVALS)
def test_names_changed_for_each_other_are_noticed(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any two, in the table by which steps and gaps are named, and in what the client and the engine say apart."""
    plain = intervals.segments_of
    for name in INTERVALS[: INTERVALS.index(other)]:
        swap = {name: other, other: name}
        with monkeypatch.context() as patch:
            patch.setattr(
                ledger, "segments_of",
                lambda *given, swap=swap: [(swap.get(said, said), *times) for said, *times in plain(*given)],
            )  # fmt: skip
            assert life.lived().wall_ns != life.expected(), swap

"""The sandbox chat templates run in: Jinja without ways to make huge values, and a budget on all it does.

Everything a template makes is measured when it is made, with what is shared counted as often as it is there. Refuses
filters and attributes that have no bound and no use in a chat template.
"""

# size: one function for each filter that needs a bound

from __future__ import annotations

import datetime
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ridgeline.kit.errors import UserError

MAX_STEPS = 100_000  # loop turns and calls of one rendering; real templates need about ten a message
MAX_TEXT = 1 << 24  # characters of the result, and of any value made on the way
MAX_WRITTEN = 1 << 26  # characters of all that is made on the way, together
MAX_SECONDS = 5.0  # of one rendering; real ones take milliseconds
NODES_PER_STEP = 64  # measuring a value of many values takes time too
BUDGET = "ridgeline_budget"
WIDENING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "replace", "translate"})
# Widths and formats without bound, and what no chat template asks for and takes long on a long text.
REFUSED_FILTERS = ("center", "xmlattr", "wordwrap", "format", "urlize", "pprint", "filesizeformat")
REFUSED_ATTRIBUTES = frozenset({"encode", "to_bytes", "maketrans"})
LONG_WIDTH = re.compile(r"\d{4}|\{[^}]*\{")  # in a format string: a width beyond 999, or one given by a value


class Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self.steps, self.characters = MAX_STEPS, MAX_WRITTEN
        self.until = time.monotonic() + MAX_SECONDS

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            exceeded("work")
        self.look()

    def look(self) -> None:
        """At the clock: some single operations cannot be counted beforehand."""
        if time.monotonic() > self.until:
            exceeded("work")

    def take(self, value: Any) -> Any:
        """Something that was just made, measured."""
        self.look()
        nodes, characters = _size(value)
        if nodes > MAX_STEPS or characters > MAX_TEXT:
            exceeded("text")
        self.steps -= nodes // NODES_PER_STEP
        self.characters -= characters if isinstance(value, str) else 0
        if self.characters < 0:
            exceeded("text")
        return value


def _size(value: Any) -> tuple[int, int]:
    """(values, characters) inside it, what is there twice counted twice; stops a little over the limits."""
    if isinstance(value, str):
        return 1, len(value)
    nodes = characters = 0
    stack = [value]
    while stack and nodes <= MAX_STEPS and characters <= MAX_TEXT:
        one = stack.pop()
        nodes += 1
        if isinstance(one, (str, bytes)):
            characters += len(one)
        elif isinstance(one, Mapping):
            stack += itertools.islice(itertools.chain(one.keys(), one.values()), MAX_STEPS)
        elif isinstance(one, (list, tuple, set, frozenset)):
            stack += itertools.islice(one, MAX_STEPS)
    return nodes, characters


class _Namespace(jinja2.utils.Namespace):
    """As jinja2's, but printing one does not print all that it holds, and what that holds."""

    def __repr__(self) -> str:
        return "<namespace>"


def exceeded(what: str) -> NoReturn:
    raise UserError(f"the model's chat template makes more {what} than allowed for. Use plain text instead.")


class _Generation(Extension):
    """{% generation %}: marks the assistant's words for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Counts calls, and refuses operations that make huge values."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_measured
        )  # fmt: skip
        for name in REFUSED_FILTERS:
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        self.filters.update(
            tojson=_to_json, replace=_replace, indent=_indent, join=_join, sum=_sum, batch=_batch, slice=_slice,
            round=_round,
        )  # fmt: skip
        self.filters = {name: _metered(function) for name, function in self.filters.items()}
        self.filters.update(ridgeline_counted=_counted, ridgeline_measured=_measured)
        self.globals.update(raise_exception=_refuse, strftime_now=_now, namespace=_Namespace)

    def is_safe_attribute(self, target: Any, name: str, value: Any) -> bool:
        """Not those that make a value of any size, or take time of any length, from a small one."""
        return name not in REFUSED_ATTRIBUTES and super().is_safe_attribute(target, name, value)

    def call(self, context: Context, target: Any, /, *arguments: Any, **options: Any) -> Any:
        budget = context.resolve(BUDGET)
        if isinstance(budget, Budget):
            budget.spend(1)
        owner, name = getattr(target, "__self__", None), getattr(target, "__name__", "")
        if isinstance(owner, str) and name == "join" and len(arguments) == 1:
            return _measured(context, _join(arguments[0], owner))
        if isinstance(owner, str) and name in WIDENING:
            _check_widening(owner, arguments)
        return _measured(context, super().call(context, target, *arguments, **options))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and LONG_WIDTH.search(value.__self__):
            exceeded("text")
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**"):
            if not all(isinstance(x, (int, float)) and abs(x) < 1 << 31 for x in (left, right)):
                _refuse(f"{type(left).__name__} {operator} {type(right).__name__} is not allowed in a chat template")
            if operator == "**" and abs(right) > 64:
                _refuse("that power is not allowed in a chat template")
        if operator == "%" and not isinstance(left, (int, float)):
            _refuse("% formatting is not allowed in a chat template")
        return _measured(context, super().call_binop(context, operator, left, right))


def count_loops(tree: nodes.Template) -> None:
    """Every loop draws its turns from the budget; what is joined, and what values are built of, is measured, and so is
    plain text, which a loop may write any number of times."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "ridgeline_counted", [], [], None, None, lineno=loop.lineno)
    for output in tree.find_all(nodes.Output):  # plain text passes by finalize, constants do not
        output.nodes = [
            nodes.Const(child.data, lineno=child.lineno) if isinstance(child, nodes.TemplateData) else child
            for child in output.nodes
        ]
    for node in list(tree.find_all(nodes.Node)):
        for field, value in node.iter_fields():
            if isinstance(value, BUILDING):
                setattr(node, field, _wrapped(value))
            elif isinstance(value, list):
                value[:] = [_wrapped(item) if isinstance(item, BUILDING) else item for item in value]


BUILDING = (nodes.Concat, nodes.List, nodes.Tuple, nodes.Dict)


def _wrapped(node: nodes.Expr) -> nodes.Expr:
    """The node, measured; its parts first, so that nothing immeasurable is joined."""
    if isinstance(node, nodes.Tuple) and node.ctx != "load":
        return node  # names that are assigned to
    if isinstance(node, nodes.Concat):
        node.nodes = [
            nodes.Filter(part, "ridgeline_measured", [], [], None, None, lineno=part.lineno) for part in node.nodes
        ]
    return nodes.Filter(node, "ridgeline_measured", [], [], None, None, lineno=node.lineno)


class _Turns(list[Any]):
    """A loop's items, with a look at the clock at each turn."""

    budget: Budget | None = None

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            if self.budget is not None:
                self.budget.look()
            yield item


@jinja2.pass_context
def _counted(context: Context, items: Any) -> list[Any]:
    budget = context.resolve(BUDGET)
    taken = _Turns(itertools.islice(items, MAX_STEPS + 1))
    if isinstance(budget, Budget):
        budget.spend(len(taken))
        taken.budget = budget
    return taken


@jinja2.pass_context
def _measured(context: Context, value: Any) -> Any:
    budget = context.resolve(BUDGET)
    return budget.take(value) if isinstance(budget, Budget) else value


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose uses are counted, and what goes in and comes out measured."""
    wanted = getattr(function, "jinja_pass_arg", None)

    @jinja2.pass_context
    @functools.wraps(function)
    def metered(context: Context, value: Any, *arguments: Any, **options: Any) -> Any:
        budget = context.resolve(BUDGET)
        if not isinstance(budget, Budget):
            return function(*_first(wanted, context), value, *arguments, **options)
        budget.spend(1)
        if not isinstance(value, str):
            budget.take(value)
        return budget.take(function(*_first(wanted, context), value, *arguments, **options))

    return metered


def _first(wanted: Any, context: Context) -> tuple[Any, ...]:
    """What a filter asks for before its value."""
    if wanted is None:
        return ()
    return {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (context.environment,)}[
        wanted.name
    ]


def _check_widening(text: str, arguments: Sequence[Any]) -> None:
    """At most every character becomes the longest argument, or the text is widened to the largest number."""
    longest = max((len(a) for a in arguments if isinstance(a, (str, list, tuple))), default=1)
    widest = max((a for a in arguments if isinstance(a, int)), default=0)
    if (len(text) + 1) * max(longest, 1) > MAX_TEXT * 4 or widest > MAX_TEXT:
        exceeded("text")


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    source, new = str(text), str(new)
    _check_widening(source, (new,))
    return source.replace(str(old), new, -1 if count is None else count)


def _join(items: Any, separator: Any = "", attribute: Any = None) -> str:
    """jinja2's and str's; added up before anything is joined."""
    if attribute is not None:
        _refuse("join(attribute=...) is not supported; use map(attribute=...) before it")
    texts = [str(item) for item in _few(items)]
    if sum(map(len, texts)) + len(str(separator)) * len(texts) > MAX_TEXT:
        exceeded("text")
    return str(separator).join(texts)


def _few(items: Any) -> list[Any]:
    taken = list(itertools.islice(items, MAX_STEPS + 1))
    nodes, characters = _size(taken)
    if nodes > MAX_STEPS or characters > MAX_TEXT:
        exceeded("text")
    return taken


def _sum(items: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Of numbers only: lists would be copied again and again."""
    if attribute is not None:
        items = (item.get(attribute, 0) for item in items)
    numbers = _few(items)
    if not all(isinstance(number, (int, float)) for number in [*numbers, start]):
        _refuse("sum adds numbers only in a chat template")
    return sum(numbers, start)


def _batch(items: Any, linecount: int, fill_with: Any = None) -> list[list[Any]]:
    taken, count = _few(items), _check_count(linecount)
    lists = [taken[place : place + count] for place in range(0, len(taken), count)]
    if fill_with is not None and lists:
        lists[-1] += [fill_with] * (count - len(lists[-1]))
    return lists


def _slice(items: Any, slices: int, fill_with: Any = None) -> list[list[Any]]:
    taken, count = _few(items), _check_count(slices)
    each, longer = divmod(len(taken), count)
    lists, place = [], 0
    for number in range(count):
        size = each + (number < longer)
        short = fill_with is not None and longer and number >= longer
        lists.append(taken[place : place + size] + ([fill_with] if short else []))
        place += size
    return lists


def _check_count(count: Any) -> int:
    if not isinstance(count, int) or not 1 <= count <= MAX_STEPS:
        _refuse(f"a count must be a number from 1 to {MAX_STEPS}")
    return int(count)


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if not -300 <= precision <= 300 or method not in ("common", "ceil", "floor"):
        _refuse("round takes a precision from -300 to 300, and common, ceil or floor")
    if method == "common":
        return round(value, precision)
    scale = 10.0**precision
    return (math.ceil if method == "ceil" else math.floor)(value * scale) / scale


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(int(width), 256)
    _check_widening(str(text), (margin,))
    lines = str(text).split("\n")
    return "\n".join(
        margin + line if (first or place) and (line or blank) else line for place, line in enumerate(lines)
    )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: no HTML escapes."""
    if indent is not None:
        indent = min(int(indent), 256)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout[:256])

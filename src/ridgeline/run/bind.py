"""Binding: which body runs each line of a Program. Decided once, at load; `ridgeline doctor` prints the table.

A line without a native body runs its reference (PyTorch) and slows only itself; without PyTorch that is a UserError.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass

from ridgeline.kernels.packing import has_body
from ridgeline.kit.errors import UserError
from ridgeline.ops.op import Line
from ridgeline.ops.program import Program

from .activations import DEFAULT

BODIES = ("cpp", "torch")
NATIVE_KINDS = frozenset(
    (
        "embed",
        "norm",
        "head_norm",
        "linear",
        "rope",
        "attend",
        "activation",
        "add",
        "gather",
        "head",
        "sample",
        "route",
        "dispatch",
        "experts",
        "combine",
        "conv",
        "scan",
        "gated_norm",
    )
)
UNPACKED_KINDS = frozenset(("norm", "head_norm", "conv", "scan", "gated_norm"))  # bodies read their weights as f32


@dataclass(frozen=True)
class Bound:
    """A Program and the name of the body of each of its lines."""

    program: Program
    bodies: tuple[str, ...]
    activations: str = DEFAULT  # how integer linears read them

    @property
    def is_native(self) -> bool:
        """Whether a whole step is one native call (D9)."""
        return all(body == "cpp" for body in self.bodies)

    def table(self) -> list[tuple[str, str, int, str]]:
        """(part, body, lines, why not native) for every part and body in use."""
        rows: Counter[tuple[str, str, str]] = Counter()
        for line, body in zip(self.program, self.bodies, strict=True):
            rows[line.part, body, "" if body == "cpp" else lacking(line) or "asked for"] += 1
        return [(part, body, lines, why) for (part, body, why), lines in rows.items()]


def bind(
    program: Program, *, body: str = "cpp", reference: frozenset[str] = frozenset(), activations: str = DEFAULT
) -> Bound:
    """`body` for every line that has it; `reference` names parts (e.g. "attend") forced to the reference body."""
    if body not in BODIES:
        raise UserError(f"unknown body {body!r}. Known: {', '.join(BODIES)}.")
    unknown = reference - {line.part for line in program}
    if unknown:
        raise UserError(f"no operator is called {', '.join(sorted(unknown))} in {program.name}.")
    bodies = tuple(
        "cpp" if body == "cpp" and line.part not in reference and not lacking(line) else "torch" for line in program
    )
    bodies = _together(program, bodies)
    if "torch" in bodies and importlib.util.find_spec("torch") is None:
        line = program.lines[bodies.index("torch")]
        why = lacking(line) or "its reference body was asked for"
        raise UserError(
            f"{line.name} needs PyTorch ({why}). Install ridgeline[torch], or use --weights bf16 with --body cpp."
        )
    return Bound(program, bodies, activations)


def _together(program: Program, bodies: tuple[str, ...]) -> tuple[str, ...]:
    """Native experts read rows as the native dispatch leaves them (quantised by expert): one on its reference, both."""
    called_out = {line.output.id for line, body in zip(program, bodies, strict=True) if body == "torch"}
    return tuple(
        "torch" if line.op.kind == "experts" and line.inputs[0].id in called_out else body
        for line, body in zip(program, bodies, strict=True)
    )


def lacking(line: Line) -> str:
    """Why the native library cannot run this line; empty when it can."""
    if line.op.kind not in NATIVE_KINDS:
        return f"no native body for {line.op.kind}"
    for weight in line.weights[: line.attributes.get("parts", 1)]:
        if line.op.kind not in UNPACKED_KINDS and not has_body(weight.format, weight.columns):
            return f"no native body for weights of {weight.columns} columns in {weight.format.name}"
        if line.op.kind == "experts" and not weight.format.by_rows:
            return f"no native body for experts in {weight.format.name}"
    storage = line.attributes.get("storage")
    if storage is not None and getattr(storage, "native", -1) < 0:
        return f"no native body for KV in {storage.name}"
    return ""

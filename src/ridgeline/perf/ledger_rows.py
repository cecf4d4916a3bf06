"""Ledger rows: a Recording as flat rows, for JSON lines or Parquet: what was measured, one number a row (A2).

`wall` rows sum to a request's time, `cost` rows to the steps, `step` rows to the engine's time with `idle`. Refuses a
file name whose ending is none of ENDINGS. Parquet needs pyarrow, which is optional.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.kit.errors import UserError

from .ledger import GAPS, HOST, RequestLedger, step_ledger
from .recording import Recorded, Recording
from .trace import write_bytes

SCHEMA = "ridgeline.ledger/1"
ENDINGS = (".jsonl", ".parquet")
IDLE = "idle"


class LedgerRow(msgspec.Struct, frozen=True):
    """kind: "wall" (request, name: interval, from begin_ns on), "cost" (request, phase, name: operator group) or "step"
    (step, name: operator group, gaps, host or idle; begin_ns: of the step; engine: of which, where there are several).
    Times on the engine's clock."""

    kind: str
    name: str
    ns: int
    request: str | None = None
    phase: str | None = None
    step: int | None = None
    begin_ns: int | None = None
    engine: str | None = None


def ledger_rows(recording: Recorded) -> Iterator[LedgerRow]:
    """All of a run."""
    for life in recording.lives():
        for name, begin, end in life.segments:
            yield LedgerRow("wall", name, end - begin, life.request, begin_ns=begin)
    for request in recording.ledger.requests:
        for phase, groups in request.costs.items():
            for group, spent in groups.items():
                yield LedgerRow("cost", group, spent, request.request_id, phase)
    for engine, one in recording.engines.items():
        yield from _step_rows(one, engine or None)


def _step_rows(recording: Recording, engine: str | None) -> Iterator[LedgerRow]:
    timeline, steps = recording.timeline, recording.steps
    if timeline is None or steps is None:
        return
    whole = step_ledger(recording.table, timeline)
    for step, began in enumerate(steps.began.tolist()):
        named = [*zip(whole.groups, whole.operators[step].tolist(), strict=True)]
        named += [(GAPS, int(whole.gaps[step])), (HOST, int(whole.host[step])), (IDLE, int(whole.idle[step]))]
        for name, spent in named:
            if spent:
                yield LedgerRow("step", name, spent, step=step + timeline.first_step, begin_ns=began, engine=engine)


def check_path(path: Path) -> None:
    """UserError when nothing could be written there; before a run, not after it."""
    if path.suffix not in ENDINGS:
        raise UserError(f"{path} ends with none of {', '.join(ENDINGS)}; name it like ledger.jsonl.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError("Parquet needs pyarrow: pip install 'ridgeline[parquet]', or name the file .jsonl.")


def write_ledger(recording: Recorded, path: Path) -> None:
    """By the file's ending. JSON lines begin with one line about the run. UserError when it cannot be written."""
    check_path(path)
    if path.suffix == ".parquet":
        _write_parquet(recording, path)
        return
    run = msgspec.to_builtins(recording.ledger)
    run["requests"] = [_head(one) for one in recording.ledger.requests]
    encoder = msgspec.json.Encoder()
    head = {"schema": SCHEMA, "about": dict(recording.about), "run": run}
    lines = [encoder.encode(head)]
    for row in ledger_rows(recording):
        lines.append(encoder.encode({k: v for k, v in msgspec.structs.asdict(row).items() if v is not None}))
    write_bytes(path, b"\n".join(lines) + b"\n")


def _head(one: RequestLedger) -> dict[str, Any]:
    """A request without what its rows say."""
    whole: dict[str, Any] = msgspec.to_builtins(one)
    return {name: value for name, value in whole.items() if name != "costs"}


def _write_parquet(recording: Recorded, path: Path) -> None:
    arrow: Any = importlib.import_module("pyarrow")  # heavy and optional
    parquet: Any = importlib.import_module("pyarrow.parquet")
    kinds = {"ns": arrow.int64(), "step": arrow.int64(), "begin_ns": arrow.int64()}
    fields = [(name, kinds.get(name, arrow.string())) for name in LedgerRow.__struct_fields__]
    rows = [msgspec.structs.asdict(row) for row in ledger_rows(recording)]
    about = {"schema": SCHEMA.encode(), "about": msgspec.json.encode(dict(recording.about))}
    table = arrow.Table.from_pylist(rows, schema=arrow.schema(fields, metadata=about))
    try:
        parquet.write_table(table, str(path))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}. Give a file in a folder that is there.") from error

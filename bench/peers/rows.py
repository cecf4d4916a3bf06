"""From single runs to a table: medians, spreads, ratios of one interleaved run, and shares of what the machine can do.

A workload's value is output tokens/s (W1: after the first token), or milliseconds to the first token (W2). A ratio
above 1 always means that ours is faster. Owns the arithmetic and the words; measures nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engines import OURS, Engine

FOREIGN_LIMIT = 0.10  # a run with more of the processor in other hands is marked
Json = dict[str, Any]


@dataclass
class Run:
    """One engine on one workload, once. Shares are of all cores' time."""

    engine: str
    workload: str
    repetition: int
    result: Json
    foreign_share: float | None
    idle_share: float  # what the other engines, waiting, took
    read_bytes_per_s: float


@dataclass
class Row:
    workload: str
    engine: str
    bits: int
    value: float
    values: list[float]
    ttft_s: float | None
    bound_share: float | None  # counted bound (this run's bandwidth and peak) / measured time: ours only
    read_share: float | None  # of the read bandwidth, by weight bytes alone: W1
    foreign_share: float
    peak_bytes: int
    same_bits_ratio: float | None = None  # to ours at the same number of bits
    best_ratio: float | None = None  # to our best
    notes: list[str] = field(default_factory=list)


def is_time(workload: str) -> bool:
    return workload.startswith("W2-")


def value_of(workload: str, result: Json) -> float:
    """Output tokens/s, or milliseconds to the first token."""
    first = result["requests"][0]
    if is_time(workload):
        return float(first["ttft_s"]) * 1e3
    if workload == "W1":
        return (len(first["ids"]) - 1) / (first["e2e_s"] - first["ttft_s"])
    return sum(len(one["ids"]) for one in result["requests"]) / float(result["wall_s"])


def bound_share(workload: str, result: Json) -> float | None:
    """Counted seconds at this run's bandwidth and peaks / measured seconds; of decode alone for W1."""
    bound_s = result.get("bound_s")
    if not bound_s:
        return None
    first = result["requests"][0]
    if workload == "W1":
        return float(bound_s["decode"]) / (first["e2e_s"] - first["ttft_s"])
    return sum(bound_s.values()) / float(first["ttft_s"] if is_time(workload) else result["wall_s"])


def read_share(workload: str, run: Run) -> float | None:
    if workload != "W1":
        return None
    return value_of(workload, run.result) * float(run.result["facts"]["weight_bytes"]) / run.read_bytes_per_s


def rows_of(workload: str, engines: Sequence[Engine], runs: Sequence[Run]) -> list[Row]:
    """One row an engine that ran, and a second one where its tool without a server was run too; ours first."""
    rows: list[Row] = []
    for engine in engines:
        mine = [run for run in runs if run.engine == engine.name and run.workload == workload]
        if mine:
            rows.append(_row(workload, engine, mine))
        if mine and all("bench" in run.result for run in mine):
            rows.append(_bench_row(workload, engine, mine))
    ours = [row for row in rows if row.engine.startswith(OURS)]
    for row in (row for row in rows if row not in ours):
        row.best_ratio = _ratio(workload, _best(workload, ours), row)
        row.same_bits_ratio = _ratio(workload, _best(workload, [one for one in ours if one.bits == row.bits]), row)
    return rows


def _row(workload: str, engine: Engine, runs: list[Run]) -> Row:
    values = [value_of(workload, run.result) for run in runs]
    firsts = [
        one["ttft_s"] for run in runs for one in run.result["requests"] if one["ttft_s"] is not None
    ]  # of all requests: the median one
    return Row(
        workload, engine.name, engine.bits, statistics.median(values), values,
        statistics.median(firsts) if firsts else None,
        _median([bound_share(workload, run.result) for run in runs]),
        _median([read_share(workload, run) for run in runs]),
        max(run.foreign_share or 0.0 for run in runs),
        max(run.result["memory"]["RssAnon"] + run.result["memory"]["RssShmem"] for run in runs),
    )  # fmt: skip


def _bench_row(workload: str, engine: Engine, runs: list[Run]) -> Row:
    values = [run.result["bench"]["decode_tokens_per_s"] for run in runs]
    first_s = statistics.median(run.result["bench"]["ttft_s"] for run in runs)
    reads = [
        rate * run.result["facts"]["weight_bytes"] / run.read_bytes_per_s
        for rate, run in zip(values, runs, strict=True)
    ]
    row = _row(workload, engine, runs)
    row.engine, row.value, row.values, row.ttft_s = (
        f"{engine.name} (llama-bench)",
        statistics.median(values),
        values,
        first_s,
    )
    row.read_share = statistics.median(reads)
    return row


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _best(workload: str, rows: Sequence[Row]) -> Row | None:
    ordered = sorted(rows, key=lambda row: row.value)
    return (ordered[0] if is_time(workload) else ordered[-1]) if ordered else None


def _ratio(workload: str, ours: Row | None, theirs: Row) -> float | None:
    if ours is None:
        return None
    return theirs.value / ours.value if is_time(workload) else ours.value / theirs.value


def table_lines(workload: str, rows: Sequence[Row], requests: int | None = None) -> Iterator[str]:
    """The rows of a workload for people, and ours against the best of the others."""
    unit = "ms to the first token" if is_time(workload) else "output tokens/s"
    after = " after the first" if workload == "W1" else ""
    yield f"{workload}: {unit}{after}{f' ({requests} requests)' if requests else ''}"
    heads = (
        "engine",
        "median",
        "min-max",
        "ours/it",
        "best/it",
        "TTFT ms",
        "of bound",
        "of read",
        "anon MiB",
        "others",
    )
    yield f"{heads[0]:27} {heads[1]:>8} {heads[2]:>13}" + "".join(f" {head:>8}" for head in heads[3:])
    for row in rows:
        mark = "!" if row.foreign_share > FOREIGN_LIMIT else ""
        spread = f"{min(row.values):.0f}-{max(row.values):.0f} ({len(row.values)})"
        cells = (
            _times(row.same_bits_ratio), _times(row.best_ratio), f"{row.ttft_s * 1e3:.0f}" if row.ttft_s else "-",
            _percent(row.bound_share), _percent(row.read_share), f"{row.peak_bytes / 2**20:.0f}",
            _percent(row.foreign_share) + mark,
        )  # fmt: skip
        yield f"{row.engine:27} {row.value:8.1f} {spread:>13}" + "".join(f" {cell:>8}" for cell in cells)
    ours, theirs = ([row for row in rows if row.engine.startswith(OURS) is mine] for mine in (True, False))
    mine, other = _best(workload, ours), _best(workload, theirs)
    if mine and other:
        ratio = _times(_ratio(workload, mine, other))
        yield f"best of ours ({mine.engine}) against the best of theirs ({other.engine}): {ratio}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def same_tokens(runs: Sequence[Run], engines: Sequence[Engine]) -> list[Json]:
    """How many tokens of W1 each engine made as ours did at the most exact weights that ran, up to the first other."""
    first = {
        run.engine: run.result["requests"][0]["ids"] for run in runs if run.workload == "W1" and run.repetition == 0
    }
    ours = [engine for engine in engines if engine.peer == OURS and engine.name in first]
    if not ours:
        return []
    reference = max(ours, key=lambda engine: min(engine.bits, 16))
    wanted = first[reference.name]
    found = []
    for name, ids in first.items():
        equal = next((at for at, (a, b) in enumerate(zip(wanted, ids, strict=True)) if a != b), len(wanted))
        found.append({"engine": name, "reference": reference.name, "equal": equal, "of": len(wanted)})
    return found


def plain(rows: Sequence[Row]) -> list[Json]:
    return [asdict(row) for row in rows]

"""Several runs of table.py in one document: each workload's rows come whole from one run, never mixed.

python bench/peers/merge.py W1,W2-512=first.json W2-2048,D32=second.json --out peers.json --plot peers.svg
Prints the tables with the bandwidth of their own run. Ratios stay those of one interleaved run.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from engines import PEERS
from rows import Row, table_lines

from ridgeline.report.plots import Panel, bars

SHOWN = ("W1", "W2-2048", "W3")
Json = dict[str, Any]


def part(pair: str) -> tuple[list[str], Json]:
    names, _, path = pair.partition("=")
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    found = found if "rows" in found else next(one for one in found["parts"] if names.split(",")[0] in workloads(one))
    wanted = names.split(",")
    if missing := sorted(set(wanted) - set(workloads(found))):
        raise SystemExit(f"{path} has no rows of {', '.join(missing)}; it has {', '.join(workloads(found))}")
    kept = {key: [one for one in found[key] if one["workload"] in wanted] for key in ("rows", "runs")}
    return wanted, found | kept


def workloads(found: Json) -> list[str]:
    return list(dict.fromkeys(row["workload"] for row in found["rows"]))


def read_rates(found: Json) -> list[float]:
    return [run["read_bytes_per_s"] for run in found["runs"]]


def plot(parts: list[Json]) -> str:
    rows: dict[str, dict[str, float]] = {name: {} for name in SHOWN}
    bits: dict[str, int] = {}
    for row in (row for one in parts for row in one["rows"] if row["workload"] in SHOWN):
        rows[row["workload"]][row["engine"]] = row["value"]
        bits[row["engine"]] = row["bits"]
    panels = [
        Panel(
            name,
            "ms, less is better" if name.startswith("W2-") else "tokens/s",
            [found.get(engine) for engine in bits],
        )
        for name, found in rows.items()
    ]
    machine = parts[0]["machines"][-1]["fingerprint"]["cpu"]
    labels = [(engine, f"{count} bits") for engine, count in bits.items()]
    title = f"{parts[0]['model'].removesuffix('.gguf')}: Ridgeline beside its peers"
    return bars(title, "medians; each panel from one interleaved run", labels, panels, f"{machine}, 2 threads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="WORKLOADS=FILE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    chosen = [part(pair) for pair in options.parts]
    known = {engine.name for engine in PEERS}
    for names, found in chosen:
        for name in names:
            rows = [Row(**row) for row in found["rows"] if row["workload"] == name]
            ids = [len(run["result"]["requests"]) for run in found["runs"] if run["workload"] == name]
            print("\n" + "\n".join(table_lines(name, rows, ids[0] if name in ("W3", "W4") else None)))
            if not any(row.engine in known for row in rows):
                raise SystemExit(f"{name}: this run has no peer to compare with; name another file")
        print(f"(read bandwidth of this run: {statistics.median(read_rates(found)) / 1e9:.1f} GB/s)")
    if options.out is not None:
        document = {"schema": "ridgeline.bench.peers/2", "parts": [found for _, found in chosen]}
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        options.plot.write_text(plot([found for _, found in chosen]), encoding="utf-8")


if __name__ == "__main__":
    main()

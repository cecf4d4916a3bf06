"""ridgeline bench: a workload, measured; the ladder from a naive loop to this engine; or a study of a model."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ridgeline.kit.errors import UserError

from .keepsakes import Keepsakes, LedgerOut, TraceOut
from .options import Json, Model, Picture, engine_verb


@engine_verb
def command(
    options: dict[str, Any],
    model: Model,
    workload: Annotated[
        str | None, typer.Option(help="A file of JSON lines, or W1, W2-512 (any length), W3, W4.", metavar="FILE")
    ] = None,
    is_ladder: Annotated[
        bool, typer.Option("--ladder", help="From naive to engine, rung by rung, measured and predicted.")
    ] = False,
    is_study: Annotated[
        bool, typer.Option("--study", help="Characterise the model here: phases, operators, batch, energy; one page.")
    ] = False,
    minutes: Annotated[float, typer.Option(help="Time the study may take in all; it measures what fits.")] = 8.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study.  [default: study-MODEL]", metavar="DIR")
    ] = None,
    parts: Annotated[
        str,
        typer.Option(help="Of the study: main (this model), rag (retrieval), sweeps (other models).", metavar="LIST"),
    ] = "main,rag,sweeps",
    plot: Annotated[Path | None, typer.Option(help="Draw the ladder into this SVG file.", metavar="FILE")] = None,
    roofline: Picture = None,
    repeats: Annotated[
        int | None, typer.Option(help="Runs, interleaved over rungs; medians are shown.  [default: 1, ladder 3]")
    ] = None,
    max_sequences: Annotated[int, typer.Option(help="Sequences that run at a time.")] = 64,
    step_tokens: Annotated[int, typer.Option(help="Tokens computed in one step.")] = 512,
    trace_out: TraceOut = None,
    ledger_out: LedgerOut = None,
    json: Json = False,
) -> None:
    """Measure a workload: greedy, ignoring end-of-sequence, each request's latency from its intended arrival.

    A workload file has one JSON object a line: {"prompt" or "prompt_ids", "output_tokens", "arrival_s"?, "priority"?}.

    \b
    Examples:
      ridgeline bench smollm2-135m --workload W3
      ridgeline bench smollm2-135m --workload requests.jsonl --json
      ridgeline bench smollm2-135m --workload W3 --trace-out trace.json --ledger-out ledger.jsonl
      ridgeline bench qwen2.5-coder-1.5b --workload code.jsonl --spec draft:qwen2.5-coder-0.5b,k=4
      ridgeline bench smollm2-135m --workload W1 --roofline roofline.html
      ridgeline bench smollm2-135m --workload W3 --place disaggregated:engines=1+1
      ridgeline bench smollm2-135m --ladder --plot ladder.svg
      ridgeline bench smollm2-135m --study --minutes 8 --out study    (broken off? the same again goes on)
    """
    keepsakes = Keepsakes(trace_out, ledger_out)
    if is_ladder and roofline is not None:
        raise UserError("--roofline draws one workload's operators; leave --ladder out.")
    if is_study:
        from .study import study  # noqa: PLC0415  heavy; --help must start in 0.3 s

        times = 5 if repeats is None else repeats
        study(model, options, minutes=minutes, out=out, json=json, repeats=times, parts=tuple(parts.split(",")))
        return
    if is_ladder:
        if keepsakes != Keepsakes():
            raise UserError("--trace-out and --ledger-out keep one workload's run; leave --ladder out.")
        from .climb import climb  # noqa: PLC0415  heavy; --help must start in 0.3 s

        climb(model, options, workload=workload, repeats=3 if repeats is None else repeats, plot=plot, json=json)
        return
    if plot is not None:
        raise UserError("--plot draws the ladder; give --ladder too.")
    from .benchmark import measure_workload  # noqa: PLC0415  likewise

    options |= {"max_sequences": max_sequences, "step_tokens": step_tokens}
    runs = 1 if repeats is None else repeats
    measure_workload(model, workload, options, repeats=runs, json=json, keepsakes=keepsakes, roofline=roofline)

"""ridgeline bench: a workload, measured; the ladder; a study of a model; or a load on a server that is there."""
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
    plot: Annotated[
        Path | None, typer.Option(help="Draw the ladder, or URL's latencies, into this SVG.", metavar="FILE")
    ] = None,
    roofline: Picture = None,
    repeats: Annotated[
        int | None, typer.Option(help="Runs, interleaved over rungs; medians are shown.  [default: 1, ladder 3]")
    ] = None,
    max_sequences: Annotated[int, typer.Option(help="Sequences that run at a time.")] = 64,
    step_tokens: Annotated[int, typer.Option(help="Tokens computed in one step.")] = 512,
    rate: Annotated[float | None, typer.Option(help="URL: requests a second, open loop.", metavar="R")] = None,
    cv: Annotated[float, typer.Option(help="URL: 1 Poisson, above bursts (gamma), 0 a clock.", metavar="X")] = 1.0,
    clients: Annotated[int, typer.Option(help="URL, without --rate: who ask in turn.", metavar="N")] = 1,
    trace: Annotated[
        Path | None, typer.Option(help="URL: replay lengths and arrivals (.csv, .jsonl, .gz).", metavar="FILE")
    ] = None,
    speed: Annotated[float, typer.Option(help="URL: play the trace so many times as fast.", metavar="X")] = 1.0,
    most_tokens: Annotated[
        int | None, typer.Option(help="URL: leave longer requests of the trace out.", metavar="N")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="URL: how many.  [default: 100; a trace: all]")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="URL: of a prompt, about.", metavar="N")] = 128,
    output_tokens: Annotated[int, typer.Option(help="URL: of an answer.", metavar="N")] = 64,
    slo: Annotated[str | None, typer.Option(help="URL: goodput under ttft=0.5,tpot=0.05,e2e=10 (seconds).")] = None,
    served: Annotated[str | None, typer.Option("--model", help="URL: model to name.  [default: the first]")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="URL: /v1/chat/completions.")] = False,
    stops: Annotated[bool, typer.Option("--stops", help="URL: answers may end early (no ignore_eos).")] = False,
    api_key_file: Annotated[Path | None, typer.Option(help="URL: a file with the key.", metavar="FILE")] = None,
    seed: Annotated[int, typer.Option(help="URL: of arrivals and prompts.")] = 0,
    trace_out: TraceOut = None,
    ledger_out: LedgerOut = None,
    json: Json = False,
) -> None:
    """Measure a workload: greedy, ignoring end-of-sequence, each request's latency from its intended arrival.

    MODEL may be the http(s)://HOST:PORT of any OpenAI-compatible server: then options marked URL say what is sent.

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
      ridgeline bench http://127.0.0.1:8000 --rate 4 --cv 2 --requests 400 --slo ttft=0.5,tpot=0.05 --plot load.svg
      ridgeline bench http://127.0.0.1:8000 --trace azure_2023_conv.csv.gz --requests 200 --speed 0.5
    """
    if model.startswith(("http://", "https://")):
        from ridgeline.perf.http_load import Aim  # noqa: PLC0415  heavy; --help must start in 0.3 s

        from .loading import Load, key_in, measure_url  # noqa: PLC0415  likewise

        aim = Aim(model, served, key_in(api_key_file), chat, not stops)
        load = Load(rate, cv, clients, trace, speed, requests, prompt_tokens, output_tokens, most_tokens, slo, seed)
        measure_url(aim, load, plot, json=json)
        return
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
        raise UserError("--plot draws the ladder or a load; give --ladder too, or a URL.")
    from .benchmark import measure_workload  # noqa: PLC0415  likewise

    options |= {"max_sequences": max_sequences, "step_tokens": step_tokens}
    runs = 1 if repeats is None else repeats
    measure_workload(model, workload, options, repeats=runs, json=json, keepsakes=keepsakes, roofline=roofline)

"""ridgeline explain: why a model is as fast as it is here, in words, with the numbers; or why a finished run was."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Json, engine_verb


@engine_verb
def command(
    options: dict[str, Any],
    subject: Annotated[
        str,
        typer.Argument(metavar="MODEL|RUN.json", help="A model (as for run), probed now; or what bench --json wrote."),
    ],
    workload: Annotated[
        str | None,
        typer.Option(help="What to ask of the model: a file of JSON lines, or W1, W2-512, W3, W4.", metavar="FILE"),
    ] = None,
    max_sequences: Annotated[int, typer.Option(help="Sequences that run at a time.")] = 64,
    step_tokens: Annotated[int, typer.Option(help="Tokens computed in one step.")] = 512,
    json: Json = False,
) -> None:
    """Say what bounds a run: one cause of a closed list, its share, the ceiling measured here, and what to try first.

    MODEL is asked a short question (or --workload) in a fresh engine. RUN.json is the document that bench or explain
    wrote with --json: it is judged again, nothing runs. Gains are estimated, with a band.

    \b
    Examples:
      ridgeline explain smollm2-135m
      ridgeline explain smollm2-135m --weights f32 --workload W1
      ridgeline bench smollm2-135m --workload W3 --json > run.json; ridgeline explain run.json
    """
    from .explanation import explain_model, explain_run, is_run  # noqa: PLC0415  heavy; --help must start in 0.3 s

    if is_run(subject):
        explain_run(subject, workload, json=json)
        return
    explain_model(subject, workload, options | {"max_sequences": max_sequences, "step_tokens": step_tokens}, json=json)

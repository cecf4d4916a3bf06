"""ridgeline serve: models behind an OpenAI-compatible HTTP server, until SIGTERM or Ctrl-C."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ridgeline.kit.errors import UserError

from .options import Json, Models, engine_verb


@engine_verb
def command(
    options: dict[str, Any],
    models: Models,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="What requests call the one model; default: MODEL.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Keys that may ask, one a line: `key` or `key name`.", metavar="FILE")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="One key; others on this machine can see it with ps.")] = None,
    max_sequences: Annotated[int, typer.Option(help="Answers made at a time.")] = 64,
    max_queue: Annotated[int, typer.Option(help="Answers under way or waiting, at most.")] = 2048,
    max_queue_wait: Annotated[float, typer.Option(help="Predicted seconds of waiting that are refused (429).")] = 30.0,
    max_body_bytes: Annotated[int, typer.Option(help="Longest request body.")] = 16 << 20,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that accepted requests have after SIGTERM.")] = 30.0,
    engine_restarts: Annotated[int, typer.Option(help="Times an hour that a dead engine is started again.")] = 3,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="/metrics needs no key.")] = False,
    metrics_alias: Annotated[
        str | None, typer.Option(help="vllm: /metrics also says it under vLLM's names.", metavar="vllm")
    ] = None,
    log_format: Annotated[str, typer.Option(help="text or json; off: no line a request.", metavar="NAME")] = "off",
    log_file: Annotated[Path | None, typer.Option(help="Where lines go; default: stderr.", metavar="FILE")] = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="Send traces there (OTLP/HTTP); needs ridgeline[otel].", metavar="URL")
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may ask; repeat for more; *: any.", metavar="ORIGIN")
    ] = None,
    share_prefix: Annotated[bool, typer.Option("--share-prefix", help="Keys share computed beginnings.")] = False,
    scripted: Annotated[
        str | None,
        typer.Option(help="Compute nothing: first token after, then one every, so many ms (150,10).", metavar="MS,MS"),
    ] = None,
    json: Json = False,
) -> None:
    """Serve models: /v1/chat/completions, /v1/completions, /v1/models and more (see /openapi.json).

    Several MODELs: an engine process each; threads, --kv-bytes and memory are split between them, and said. Requests
    choose by `model`; the first is meant where none is named. NAME=MODEL: what requests call it.

    SIGTERM or Ctrl-C: what was accepted is finished within --drain-timeout, exit code 0; a second one ends at once, 1.

    \b
    Examples:
      ridgeline serve smollm2-135m
      ridgeline serve smollm2-135m --port 9000 --api-key-file keys.txt
      ridgeline serve smollm2-135m --scripted 150,10   (to calibrate a load generator)
      ridgeline serve chat=smollm2-135m code=qwen2.5-coder-0.5b
      ridgeline serve qwen2.5-coder-0.5b --kv int8 --spec ngram:k=4 --policy fair
    """
    from ridgeline.serve.served import Limits  # noqa: PLC0415  heavy; --help must start in 0.3 s

    from .serving import Asked, serve  # noqa: PLC0415  likewise

    if api_key is not None:
        print("warning: a key on the command line is visible with ps; use --api-key-file.", file=sys.stderr)
    if metrics_alias not in (None, "vllm"):
        raise UserError(f"--metrics-alias is {metrics_alias!r}; only vllm is known.")
    asked = Asked(
        models, name, host, port, api_key_file, api_key, options | {"max_sequences": max_sequences},
        open_metrics,
        Limits(
            body_bytes=max_body_bytes, queue_requests=max_queue, queue_wait_s=max_queue_wait, drain_s=drain_timeout,
            restarts=engine_restarts,
            share_prefix=share_prefix, cors=tuple(cors or ()),
        ),
        scripted, metrics_alias is not None, log_format, log_file, otlp_endpoint,
    )  # fmt: skip
    raise typer.Exit(serve(asked, json=json))

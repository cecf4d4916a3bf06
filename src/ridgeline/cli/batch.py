"""ridgeline batch: a file of requests in, a file of answers out, without a server."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Json, engine_verb


@engine_verb
def command(
    options: dict[str, Any],
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="JSON lines of OpenAI's batch format: custom_id, method, url, body.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Answers, a line each, in the order they come.")],
    model: Annotated[str, typer.Option(help="Any model that verbs take; requests name it so.")] = "smollm2-135m",
    name: Annotated[str | None, typer.Option(help="What requests call the model.  [default: as they do]")] = None,
    max_sequences: Annotated[int, typer.Option(help="Answers made at a time.")] = 64,
    json: Json = False,
) -> None:
    """Answer a file of requests. Broken off, even by kill -9 or a full disk? The same again goes on where it was.

    \b
    Examples:
      ridgeline batch in.jsonl out.jsonl
      ridgeline batch in.jsonl out.jsonl --model qwen2.5-coder-0.5b --max-sequences 128
    """
    from .batching import answer_file  # noqa: PLC0415  heavy; --help must start in 0.3 s

    answer_file(source, out, model, name, options | {"max_sequences": max_sequences}, json=json)

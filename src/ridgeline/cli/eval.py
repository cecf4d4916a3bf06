"""ridgeline eval: how good a model's numbers are on a text, and how far from a parent."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

from typing import Annotated

import typer

from .options import Activations, Body, Isa, Json, Kv, Model, Threads, Weights, guarded


@guarded
def command(
    model: Model,
    text: Annotated[str, typer.Option(help="A UTF-8 file, or pydoc: python's language reference.")] = "pydoc",
    tokens: Annotated[int, typer.Option(help="Score at least this many tokens.", metavar="N")] = 50_000,
    against: Annotated[
        str | None,
        typer.Option(
            help="Also KL divergence from a parent: a weight format of the same model (f32: with KV in f32 too), or "
            "another model with the same vocabulary."
        ),
    ] = None,
    weights: Weights = "native",
    kv: Kv = "auto",
    isa: Isa = None,
    activations: Activations = "int16",
    body: Body = "cpp",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure perplexity on a text and, with --against, mean KL divergence from a parent, token by token.

    \b
    Examples:
      ridgeline eval smollm2-135m
      ridgeline eval smollm2-135m --against f32
      ridgeline eval smollm2-135m --weights bf16 --text novel.txt --tokens 100000
    """
    from .scoring import Comparison, evaluate  # noqa: PLC0415  heavy; --help must start in 0.3 s

    comparison = Comparison(model, text, tokens, against, weights, kv, isa, body, threads, activations)
    evaluate(comparison, json=json)

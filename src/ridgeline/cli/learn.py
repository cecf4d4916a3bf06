"""ridgeline learn: how long a model's own answers get, from its hidden states."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, Model, Threads, Weights, guarded


@guarded
def command(
    model: Model,
    answers: Annotated[int, typer.Option(help="Answers to learn from and to test with.", metavar="N")] = 700,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", metavar="N")] = 512,
    every: Annotated[int, typer.Option(help="Look at an answer every so many tokens.", metavar="N")] = 10,
    temperature: Annotated[float, typer.Option(help="Of the answers.")] = 0.7,
    prompts: Annotated[
        str | None, typer.Option(help="A UTF-8 file, one prompt a line; default: made-up tasks.", metavar="FILE")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Learn from the answers that were made before.")] = False,
    weights: Weights = "native",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Let a model answer prompts, and learn to say, from its last hidden state, how many tokens an answer still gets.

    What it learns is kept in RIDGELINE_HOME/lengths; --place disaggregated:rebalance=predict uses it. The errors shown
    are of answers that it did not learn from, beside those of simpler predictors.

    \b
    Examples:
      ridgeline learn smollm2-135m
      ridgeline learn smollm2-135m --answers 200 --max-tokens 256
      ridgeline learn smollm2-135m --again --json
    """
    from .learning import Lesson, learn  # noqa: PLC0415  heavy; --help must start in 0.3 s

    lesson = Lesson(model, answers, max_tokens, every, temperature, prompts, again, weights, threads)
    learn(lesson, json=json)

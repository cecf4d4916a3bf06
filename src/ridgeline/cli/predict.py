"""ridgeline predict: counts, memory and estimated times of any model, present or not."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

from typing import Annotated, Literal

import typer

from .options import Json, Kv, KvBytes, Model, Threads, Weights, guarded


@guarded
def command(
    model: Model,
    is_by_operator: Annotated[bool, typer.Option("--operators", help="The counted table, operator by operator.")] = (
        False
    ),
    phase: Annotated[Literal["both", "prefill", "decode"], typer.Option(help="Which phase to count.")] = "both",
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt.", metavar="N")] = 512,
    output: Annotated[int, typer.Option(help="Tokens of each answer.", metavar="N")] = 128,
    batch: Annotated[int, typer.Option(help="Requests at a time.", metavar="N")] = 1,
    context: Annotated[
        int | None, typer.Option(help="Tokens kept while decoding; default: prompt and half the answer.", metavar="N")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Plan for a machine with this much memory, like 80G.", metavar="SIZE")
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(help="... that reads this many bytes a second, like 2T.", metavar="RATE")
    ] = None,
    flops: Annotated[
        str | None, typer.Option(help="... and does this many operations a second, like 312T.", metavar="RATE")
    ] = None,
    weights: Weights = "native",
    kv: Kv = "auto",
    kv_bytes: KvBytes = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Say what a model needs and how fast it could be, without loading it: memory first, then work, bytes and time.

    Times are estimated from counts and the ceilings measured on this machine, or from ceilings you give. The first time
    our kernels are calibrated for the model's formats, which takes some 7 s.

    \b
    Examples:
      ridgeline predict smollm2-135m --operators
      ridgeline predict random:llama-3-8b --operators --batch 8 --prompt 1000
      ridgeline predict random:llama-2-70b --memory 80G --bandwidth 2T --flops 312T
    """
    from .counting import Question, predict  # noqa: PLC0415  heavy; --help must start in 0.3 s

    question = Question(
        model=model, phase=phase, prompt=prompt, output=output, batch=batch, context=context, memory=memory,
        bandwidth=bandwidth, flops=flops, weights=weights, kv=kv, kv_bytes=kv_bytes, threads=threads,
    )  # fmt: skip
    predict(question, is_by_operator=is_by_operator, json=json)

"""Options that several verbs share, and how every verb ends: errors become one sentence and an exit code.

Exit codes: 0 done, 2 asked wrongly or does not fit, 70 our own fault, 130 interrupted.
"""
# size: engine_options takes the engine options that verbs share, by name

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from ridgeline.kit.errors import RidgelineError, UserError

P = ParamSpec("P")

Model = Annotated[
    str,
    typer.Argument(
        help="A known name, a .gguf file, a model directory (GPTQ, AWQ, compressed-tensors too), or random:SHAPE."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document as the last line of stdout; words go to stderr.")]
Weights = Annotated[
    str,
    typer.Option(
        help="native (the file's own bits), or a format to convert to: f32, f16, bf16, q8_0, q4_1, q4_0, q5_0, "
        "int8, int4, fp8; with options as int4:group=128,zero=1.",
        metavar="FORMAT",
    ),
]
Threads = Annotated[int | None, typer.Option(help="Threads; default: the cores this process may use.", metavar="N")]
Kv = Annotated[
    str,
    typer.Option(
        help="How keys and values are kept: auto (bf16; f32 beside f32 weights), f32, bf16, int8, int4.",
        metavar="FORMAT",
    ),
]
KvBytes = Annotated[
    str | None, typer.Option(help="Size of the KV pool, like 256M or 2G; default: what memory allows.", metavar="SIZE")
]
HostKvBytes = Annotated[
    str | None, typer.Option(help="Memory for beginnings that had to leave the KV pool.", metavar="SIZE")
]
DiskKvBytes = Annotated[str | None, typer.Option(help="The same on disk, after host memory.", metavar="SIZE")]
Context = Annotated[int | None, typer.Option(help="Tokens of prompt and answer together.", metavar="N")]
Isa = Annotated[
    str | None, typer.Option(help="Instruction set: plain, avx2, avx512, avx512_bf16; default: the best here.")
]
Spec = Annotated[
    str | None,
    typer.Option(help="Guess tokens ahead: ngram:k=4, or draft:MODEL,k=4 (same vocabulary).", metavar="PROPOSER"),
]
Policy = Annotated[
    str, typer.Option(help="Who is served first: fcfs, priority, deadline, shortest or fair.", metavar="NAME")
]
Place = Annotated[
    str,
    typer.Option(
        help="Who computes what where: chunked (one engine, mixed steps), serial (one engine, prompts first), "
        "disaggregated (prompts on one engine, the rest on another); as disaggregated:engines=1+1,link=tcp.",
        metavar="NAME",
    ),
]
Keep = Annotated[
    str, typer.Option(help="Which tokens are kept: all, window:512, sinks:4+window:512, h2o:128+window:128.")
]
Prefix = Annotated[bool, typer.Option("--prefix/--no-prefix", help="Share computed beginnings between requests.")]
Activations = Annotated[
    str,
    typer.Option(
        help="What integer linears read: int16 (15 bits), auto (8 bits, 15 where outliers are; faster prompts), int8."
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--roofline", help="Show operators beside their ceilings, and draw them: .html, .svg or .png.", metavar="FILE"
    ),
]
Body = Annotated[str, typer.Option(help="cpp (our kernels), or torch (the reference, slow).")]


def engine_options(
    *, weights: str, threads: int | None, kv: str, context: int | None, isa: str | None, body: str,
    kv_bytes: str | None = None, spec: str | None = None, policy: str | None = None, keep: str | None = None,
    prefix: bool | None = None, host_kv_bytes: str | None = None, disk_kv_bytes: str | None = None,
    activations: str | None = None, place: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fields of EngineConfig; what was not given is left to its default."""
    given = {
        "weights": weights, "threads": threads, "kv": kv, "context": context, "isa": isa, "body": body,
        "kv_bytes": None if kv_bytes is None else size_bytes(kv_bytes), "spec": spec, "policy": policy, "keep": keep,
        "prefix": prefix, "activations": activations, "place": place,
        "host_kv_bytes": None if host_kv_bytes is None else size_bytes(host_kv_bytes),
        "disk_kv_bytes": None if disk_kv_bytes is None else size_bytes(disk_kv_bytes),
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def size_bytes(text: str) -> int:
    """ "256M" -> 268435456. K, M, G, T are powers of 1024. UserError for anything else."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    power = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}.get(unit)
    try:
        size = int(float(number) * (1 << power)) if power is not None else 0
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UserError(f"{text!r} is not a size; write one like 256M or 2G.")
    return size


def guarded(verb: Callable[P, None]) -> Callable[P, None]:
    """A verb whose RidgelineErrors end in one sentence on stderr and an exit code."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except RidgelineError as error:
            print(f"error: {error}\nThis is a fault of Ridgeline, not of what you asked.", file=sys.stderr)
            raise typer.Exit(70) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output went away, as `| head` does
            sys.stderr.close()
            raise typer.Exit(0) from None

    return run

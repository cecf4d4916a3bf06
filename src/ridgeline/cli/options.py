"""Options that several verbs share, and how every verb ends: errors become one sentence and an exit code.

Exit codes: 0 done, 2 asked wrongly or does not fit, 70 our own fault, 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Concatenate, ParamSpec, get_type_hints

import typer

from ridgeline.kit.errors import RidgelineError, UserError

P = ParamSpec("P")

Model = Annotated[
    str,
    typer.Argument(
        help="A known name, a .gguf file, a model directory (GPTQ, AWQ, compressed-tensors too), or random:SHAPE."
    ),
]
Models = Annotated[list[str], typer.Argument(help="As MODEL of other verbs; also NAME=MODEL.", metavar="MODEL...")]
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
        help="How keys and values are kept: auto (bf16; f32 beside f32 weights), f32, bf16, int8, int4, or "
        "blocks of two bits a number as hack:group=64,sinks=4.",
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
    str,
    typer.Option(help="Who is served first: fcfs, priority, deadline, shortest, remaining or fair.", metavar="NAME"),
]
Place = Annotated[
    str,
    typer.Option(
        help="Who computes what where: chunked (one engine, mixed steps), serial (one engine, prompts first), "
        "split (one engine, prompts and answers at a time on shares of the threads), "
        "corun (as chunked; attention's two kinds of work in turns), "
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


ENGINE: Mapping[str, tuple[Any, Any]] = MappingProxyType(
    {  # what verbs that start an engine share, in the order of their help: how it is written, and its default
        "weights": (Weights, "native"),
        "threads": (Threads, None),
        "kv": (Kv, "auto"),
        "kv_bytes": (KvBytes, None),
        "keep": (Keep, "all"),
        "prefix": (Prefix, True),
        "host_kv_bytes": (HostKvBytes, None),
        "disk_kv_bytes": (DiskKvBytes, None),
        "spec": (Spec, None),
        "policy": (Policy, "fcfs"),
        "place": (Place, "chunked"),
        "context": (Context, None),
        "isa": (Isa, None),
        "activations": (Activations, "int16"),
        "body": (Body, "cpp"),
    }
)
SIZES = ("kv_bytes", "host_kv_bytes", "disk_kv_bytes")


def engine_verb(verb: Callable[Concatenate[dict[str, Any], P], None]) -> Callable[..., None]:
    """A guarded verb whose command line has all of ENGINE too, before its last option (--json).

    verb: its first parameter gets them as fields of EngineConfig; what was not given is left to its default.
    """
    written = get_type_hints(verb, include_extras=True)
    _, *own = [one.replace(annotation=written[name]) for name, one in inspect.signature(verb).parameters.items()]
    shared = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)
        for name, (annotation, default) in ENGINE.items()
    ]

    @functools.wraps(verb)
    def run(**given: Any) -> None:
        engine = {name: given.pop(name) for name in ENGINE}
        sized = {name: size_bytes(engine[name]) for name in SIZES if engine[name] is not None}
        verb({name: value for name, value in (engine | sized).items() if value is not None}, **given)  # type: ignore[call-arg]

    parameters = [*own[:-1], *shared, own[-1]]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads both
    run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    return guarded(run)


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

"""ridgeline doctor: what this machine can do, which bodies a model would run on, and what is missing."""
# size: one parameter an option: the signature is the command line

from __future__ import annotations

from typing import Annotated

import typer

from .options import Body, Json, Kv, Threads, Weights, guarded


@guarded
def command(
    model: Annotated[str | None, typer.Argument(help="Also show which body each of its operators runs on.")] = None,
    is_measuring: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure again: every ceiling, our kernels by rows (a MODEL's own too), the host; 30 s."
        ),
    ] = False,
    is_listing: Annotated[
        bool,
        typer.Option("--devices", help="Only list the catalogue of devices: what their makers print, not measured."),
    ] = False,
    weights: Weights = "native",
    kv: Kv = "auto",
    body: Body = "cpp",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Examine this machine: instruction sets, measured bandwidth and peaks, operator bodies, and what is missing.

    \b
    Examples:
      ridgeline doctor
      ridgeline doctor smollm2-135m
      ridgeline doctor --measure
      ridgeline doctor smollm2-135m --measure
      ridgeline doctor --devices
    """
    if is_listing:
        from .devices import list_devices  # noqa: PLC0415  likewise

        return list_devices(json=json)
    from .diagnosis import examine  # noqa: PLC0415  heavy; --help must start in 0.3 s

    examine(model, is_measuring=is_measuring, weights=weights, kv=kv, body=body, threads=threads, json=json)

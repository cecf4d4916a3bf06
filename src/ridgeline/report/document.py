"""The JSON document that ends every command's stdout with --json: one line, a versioned schema, the machine.

Readers may rely on the keys of a schema; a key that changes its meaning raises the number.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from ridgeline.kit.version import __version__

if TYPE_CHECKING:
    from ridgeline.run.machine import Fingerprint

VERSION = 1


def document(verb: str, machine: Fingerprint, fields: dict[str, Any]) -> dict[str, Any]:
    """The envelope around a verb's fields (plain JSON types or msgspec structs)."""
    envelope = {"schema": f"ridgeline.{verb}/{VERSION}", "version": __version__, "machine": machine}
    return dict(msgspec.to_builtins(envelope | fields))


def print_document(content: dict[str, Any], stream: TextIO | None = None) -> None:
    """Write it as one line. Call it last: it must be the last line of stdout."""
    stream = stream or sys.stdout
    stream.write(msgspec.json.encode(content).decode() + "\n")
    stream.flush()

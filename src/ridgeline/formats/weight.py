"""StoredWeight: a named matrix in a format, its bytes mapped, made on demand, or not there at all (a descriptor, A8).

Converted and random weights are made when asked for and not kept: whoever packs them keeps the only copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.ops.protocols import Floats, Format

from .format import Bytes


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeight:
    """[rows, columns]; a vector has rows == 1. stored: [nbytes] u8 in file order; make: gives the same each time.

    Neither: a descriptor.
    """

    name: str
    rows: int
    columns: int
    format: Format
    stored: Bytes | None = None
    make: Callable[[], Bytes] | None = None

    @property
    def data(self) -> Bytes | None:
        """The bytes, made anew on every call when they are not stored; None for a descriptor."""
        return self.stored if self.make is None else self.make()

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(self.rows, self.columns)

    def unpack(self) -> Floats:
        """[rows, columns] f32; InvariantError on a descriptor."""
        data = self.data
        if data is None:
            raise InvariantError(f"{self.name} is a descriptor: it has a shape and a format but no numbers")
        return self.format.unpack(data, self.rows, self.columns)

    def describe(self) -> StoredWeight:
        """The same without its bytes."""
        return replace(self, stored=None, make=None)


def convert(weight: StoredWeight, format: Format) -> StoredWeight:
    """`weight` in another format, converted when its bytes are asked for; itself when it already is in it.

    UserError names the tensor that cannot be.
    """
    if weight.format.name == format.name:
        return weight
    try:
        format.nbytes(weight.rows, weight.columns)
    except UserError as error:
        raise UserError(f"cannot convert {weight.name} to {format.name}: {error}") from error
    if weight.stored is None and weight.make is None:
        return StoredWeight(weight.name, weight.rows, weight.columns, format)

    def make() -> Bytes:
        try:
            return format.pack(weight.unpack())
        except UserError as error:
            raise UserError(f"cannot convert {weight.name} to {format.name}: {error}") from error

    return StoredWeight(weight.name, weight.rows, weight.columns, format, make=make)

"""StoredWeight: a named matrix in a format, its bytes mapped, held or not there at all (a descriptor, A8)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.ops.protocols import Floats, Format, Weight

from .format import Bytes


@dataclass(frozen=True, slots=True, eq=False)
class StoredWeight:
    """[rows, columns]; a vector has rows == 1. data: [nbytes] u8 in file order, or None for a descriptor."""

    name: str
    rows: int
    columns: int
    format: Format
    data: Bytes | None = None

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(self.rows, self.columns)

    def unpack(self) -> Floats:
        """[rows, columns] f32; InvariantError on a descriptor."""
        if self.data is None:
            raise InvariantError(f"{self.name} is a descriptor: it has a shape and a format but no numbers")
        return self.format.unpack(self.data, self.rows, self.columns)

    def describe(self) -> StoredWeight:
        """The same without its bytes."""
        return replace(self, data=None)


def convert(weight: Weight, format: Format) -> StoredWeight:
    """`weight` in another format; its own bytes when it already is in it. UserError names the tensor that cannot be."""
    if weight.format.name == format.name:
        return StoredWeight(weight.name, weight.rows, weight.columns, weight.format, weight.data)
    try:
        format.nbytes(weight.rows, weight.columns)
        data = None if weight.data is None else format.pack(weight.unpack())
    except UserError as error:
        raise UserError(f"cannot convert {weight.name} to {format.name}: {error}") from error
    return StoredWeight(weight.name, weight.rows, weight.columns, format, data)

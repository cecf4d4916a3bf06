"""What operators need to know of weights and of kept state; higher rooms bring the objects."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .recurrent import StateShape

Floats = npt.NDArray[np.float32]


class Format(Protocol):
    """How a matrix [rows, columns] is stored. Implemented in formats/, one file each."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> int:
        """Columns must be a multiple of this."""
        ...

    @property
    def native(self) -> int:
        """What native bodies know it by (RlFormat and options), -1: they do not."""
        ...

    @property
    def by_rows(self) -> bool:
        """Whether the bytes of a matrix are those of its rows, one after another."""
        ...

    def nbytes(self, rows: int, columns: int) -> int: ...

    def pack(self, values: Floats) -> npt.NDArray[np.uint8]:
        """[rows, columns] f32 -> bytes in file order."""
        ...

    def unpack(self, data: npt.NDArray[np.uint8], rows: int, columns: int) -> Floats:
        """Bytes in file order -> [rows, columns] f32."""
        ...


class Weight(Protocol):
    """A named matrix [rows, columns] (a vector has rows == 1). `data` is None for a descriptor (A8)."""

    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def format(self) -> Format: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def data(self) -> npt.NDArray[np.uint8] | None: ...

    def unpack(self) -> Floats:
        """[rows, columns] f32; raises InvariantError on a descriptor."""
        ...


class KvStorage(Protocol):
    """How a kept token's K and V are stored (memory/storage/)."""

    name: str

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """K and V of one token in one layer."""
        ...


@runtime_checkable
class BlockStorage(KvStorage, Protocol):
    """One that keeps whole blocks of `group` tokens, the others and the first `sinks` in `recent` (E7)."""

    group: int
    sinks: int
    recent: KvStorage

    def check_dim(self, head_dim: int) -> None:
        """UserError for heads it cannot keep."""
        ...


class KvRetention(Protocol):
    """Which tokens are kept and read (memory/retention/)."""

    @property
    def name(self) -> str: ...

    def reach(self, window: int) -> Any:
        """ops.kv.Reach of a layer whose model gives it this window (0: all)."""
        ...


class KvView(Protocol):
    """The state of one layer during a step, for reference bodies. Tensors are torch tensors, f32."""

    def append(self, k: Any, v: Any) -> None:
        """Store k, v: [tokens, kv_heads, head_dim] of this step's tokens, rounded as the storage rounds."""
        ...

    def read(self, sequence: int) -> tuple[Any, Any]:
        """K, V of batch entry `sequence`, [slots, kv_heads, head_dim], as the storage gives them; 0 where dropped."""
        ...

    def add_mass(self, sequence: int, mass: Any) -> None:
        """Attention weights [kv_heads, slots] that kept tokens got from this entry's rows; where mass is kept (C10)."""
        ...

    def base(self, sequence: int) -> int:
        """Slot of the entry's first token: what lies before is context."""
        ...

    def close(self, recent: KvView) -> None:
        """Of a BlockStorage: keep the blocks whose last token this step has appended to `recent`."""
        ...


class StateStorage(Protocol):
    """How a sequence's recurrent state is stored (memory/storage/recurrent.py). Bytes are of one layer."""

    name: str
    gives: frozenset[str]  # kit.capability

    def conv_bytes(self, shape: StateShape) -> int: ...

    def scan_bytes(self, shape: StateShape) -> int: ...


class StateView(Protocol):
    """The recurrent state of one layer during a step, for reference bodies: torch tensors, f32; zeros at position 0."""

    def read_conv(self, sequence: int) -> Any:
        """[taps - 1, channels] of batch entry `sequence`, the oldest input first."""
        ...

    def write_conv(self, sequence: int, inputs: Any) -> None: ...

    def read_scan(self, sequence: int) -> Any:
        """[heads, states, head_dim] of batch entry `sequence`."""
        ...

    def write_scan(self, sequence: int, state: Any) -> None: ...

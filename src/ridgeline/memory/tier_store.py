"""TierStore: the bytes of blocks saved outside the pool, in host memory or as files of a directory of its own.

Which blocks, how many and for how long is Tiers' matter; the directory is made when first needed, removed by close.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import CapacityError, InvariantError
from ridgeline.kit.home import home

Bytes = npt.NDArray[np.uint8]


class TierStore:
    """Keyed by (group, key); a key's groups move together."""

    def __init__(self) -> None:
        self._host: dict[int, dict[int, Bytes]] = {}  # key -> group -> bytes
        self._disk: dict[int, dict[int, Path]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def save(self, group: int, key: int, data: Bytes, tier: str) -> None:
        """A copy of `data` under the key."""
        if tier == "host":
            self._host.setdefault(key, {})[group] = data.copy()
        else:
            self._disk.setdefault(key, {})[group] = self._write(group, key, data)

    def adopt(self, group: int, key: int, data: Bytes) -> None:
        """`data` itself under the key, in host memory."""
        self._host.setdefault(key, {})[group] = data

    def load(self, group: int, key: int, into: Bytes) -> None:
        """Saved bytes, from whichever tier has them."""
        if group in self._host.get(key, {}):
            into[:] = self._host[key][group]
            return
        path = self._disk.get(key, {}).get(group)
        if path is None:
            raise InvariantError(f"nothing is saved under key {key} of group {group}")
        try:
            with path.open("rb") as file:
                count = file.readinto(memoryview(into))  # type: ignore[arg-type]
        except OSError as error:
            raise CapacityError(
                f"cannot read kept state back from {path}: {error.strerror}. Start without --disk-kv-bytes."
            ) from error
        if count != len(into):
            raise InvariantError(f"{path} holds {count} of {len(into)} bytes")

    def move(self, key: int, tier: str) -> int:
        """From host memory to disk, or tier "": forgotten. Bytes moved."""
        host, disk = self._host.pop(key, {}), self._disk.pop(key, {})
        if tier == "disk":
            self._disk[key] = disk | {group: self._write(group, key, data) for group, data in host.items()}
            return sum(data.nbytes for data in host.values())
        for path in disk.values():
            path.unlink(missing_ok=True)
        return 0

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes saved by tier."""
        return {
            "host": sum(data.nbytes for groups in self._host.values() for data in groups.values()),
            "disk": sum(path.stat().st_size for groups in self._disk.values() for path in groups.values()),
        }

    def close(self) -> None:
        """Forget everything and remove the files."""
        self._host.clear()
        self._disk.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _write(self, group: int, key: int, data: Bytes) -> Path:
        try:
            if self._folder is None:
                (home() / "kv").mkdir(parents=True, exist_ok=True)
                self._folder = tempfile.TemporaryDirectory(dir=home() / "kv")
            path = Path(self._folder.name) / f"{key}-{group}"
            data.tofile(path)
        except OSError as error:
            raise CapacityError(
                f"cannot keep state on disk under {home() / 'kv'}: {error.strerror}. Make room there, set "
                f"RIDGELINE_HOME elsewhere, or ask for less with --disk-kv-bytes."
            ) from error
        return path

"""Keys: who may ask. Compared in constant time, as hashes; never logged, never in an error or a metric."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from ridgeline.kit.errors import UserError

from .refusal import Refusal

MAX_FILE_BYTES = 1 << 20
CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Keys:
    """Lines `key [name]`; the name is the tenant. Without keys everybody may ask."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        """UserError for a line that is none."""
        self._names: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2:
                raise UserError(f"line {number} of the keys has {len(words)} words; write `key` or `key name`.")
            self._names[_hash(words[0].encode())] = words[1] if len(words) == 2 else f"key-{number}"

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """UserError when it cannot be read or holds no key."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"{path} is larger than {MAX_FILE_BYTES} bytes; it is no file of keys.")
            keys = cls(path.read_text("utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the keys in {path}: {error}.") from error
        if not keys:
            raise UserError(f"{path} holds no key; write one a line: `key` or `key name`.")
        return keys

    def __bool__(self) -> bool:
        return bool(self._names)

    def tenant(self, authorizations: list[bytes]) -> str:
        """The name that belongs to the values of the Authorization header; 401 unless it is exactly one known key."""
        if not self._names:
            return ""
        if not authorizations:
            raise Refusal(401, "invalid_api_key", "No API key; send `Authorization: Bearer KEY`.", headers=CHALLENGE)
        scheme, _, key = authorizations[0].partition(b" ")
        asked, found = _hash(key.strip()), None
        for known, name in self._names.items():  # all of them: the time tells nothing
            if hmac.compare_digest(known, asked):
                found = name
        if len(authorizations) > 1 or scheme.lower() != b"bearer" or found is None:
            raise Refusal(401, "invalid_api_key", "The API key is not known here.", headers=CHALLENGE)
        return found


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

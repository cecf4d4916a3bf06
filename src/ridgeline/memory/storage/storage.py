"""Storage: how a kept token's K and V are stored and read back. One file a storage, one line in STORAGES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt

from ridgeline.kit.errors import InvariantError, UserError
from ridgeline.kit.registry import Registry
from ridgeline.ops.protocols import Floats

BLOCK_TOKENS = 16  # tokens in a page; equals RL_BLOCK_TOKENS of the native kernels
Bytes = npt.NDArray[np.uint8]


class Storage(Protocol):
    """Pages hold BLOCK_TOKENS tokens of one layer and kv head: a K page, then a V page of page_bytes each.

    A kept vector is a row of bytes, whose number is a multiple of 4: V pages hold the tokens' rows one after another, K
    pages the same rows turned round in units of 4 bytes (kernels/cpp/ridgeline.h, RlPool).
    determinism: "bitwise", "same-build" or "none".
    """

    name: str
    native: int  # RlStorage number, -1: no native kernel
    determinism: str

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """K and V of one token in one layer."""
        ...

    def page_bytes(self, head_dim: int) -> int: ...

    def pack_keys(self, keys: Floats) -> npt.NDArray[np.uint8]:
        """[BLOCK_TOKENS, head_dim] f32 -> a K page. Packing what was unpacked may move it by rounding (int4)."""
        ...

    def unpack_keys(self, page: npt.NDArray[np.uint8], head_dim: int) -> Floats: ...

    def pack_values(self, values: Floats) -> npt.NDArray[np.uint8]: ...

    def unpack_values(self, page: npt.NDArray[np.uint8], head_dim: int) -> Floats: ...


def token_keys(page: Bytes) -> npt.NDArray[np.uint32]:
    """[BLOCK_TOKENS, units] a writable view of a K page: what is kept of each token, whatever the storage."""
    return page.view(np.uint32).reshape(-1, BLOCK_TOKENS).T


def token_values(page: Bytes) -> Bytes:
    """[BLOCK_TOKENS, row bytes] a writable view of a V page."""
    return page.reshape(BLOCK_TOKENS, -1)


def key_page(rows: Bytes) -> Bytes:
    """[BLOCK_TOKENS, row bytes] -> a K page."""
    return np.ascontiguousarray(np.ascontiguousarray(_page(rows)).view(np.uint32).T).view(np.uint8).reshape(-1)


def value_page(rows: Bytes) -> Bytes:
    """[BLOCK_TOKENS, row bytes] -> a V page."""
    return np.ascontiguousarray(_page(rows)).reshape(-1)


def _page(rows: Bytes) -> Bytes:
    if rows.ndim != 2 or rows.shape[0] != BLOCK_TOKENS:
        raise InvariantError(f"a page holds the rows of {BLOCK_TOKENS} tokens, not {list(rows.shape)}")
    return rows


STORAGES: Registry[Storage] = Registry(
    "KV storage",
    __package__,
    {
        "f32": ".f32:STORAGE",
        "bf16": ".bf16:STORAGE",
        "f16": ".f16:STORAGE",
        "int8": ".int8:STORAGE",
        "int4": ".int4:STORAGE",
    },
)

# Storages that keep whole blocks of tokens and have options: made from an options dataclass, named in make's signature.
BLOCK_STORAGES: Registry[Callable[[Any], Any]] = Registry("KV storage", __package__, {"hack": ".hack:make"})


def make_storage(text: str) -> Any:
    """A Storage (or a ops.protocols.BlockStorage with pages) from its name, or NAME:option=value,option=value."""
    name, _, written = text.partition(":")
    if name not in BLOCK_STORAGES:
        if written or name not in STORAGES:
            known = ", ".join(("auto", *STORAGES, *BLOCK_STORAGES))
            raise UserError(f"kv is {text!r}; known: {known}.")
        return STORAGES.get(name)
    make = BLOCK_STORAGES.get(name)
    options = get_type_hints(make)["options"]
    given = dict(pair.partition("=")[::2] for pair in written.split(",") if pair)
    names = [field.name for field in fields(options)]
    for key in given:
        if key not in names:
            raise UserError(f"KV storage {name} has no option {key!r}; its options are {', '.join(names)}.")
    try:
        return make(msgspec.convert(given, options, strict=False))
    except msgspec.ValidationError as error:
        raise UserError(f"KV storage {name}: {error}. Write {name}:option=value,option=value.") from error

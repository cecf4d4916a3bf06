"""`NAME:key=value,key=value`: how a technique and its options are written. Refuses options it has not."""

from __future__ import annotations

from collections.abc import Mapping

from ridgeline.kit.errors import UserError


def split(text: str) -> tuple[str, dict[str, str]]:
    """("name", {key: value}); a value without a key is `model` (a path may hold ":" and "=" after its key)."""
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, mark, value = item.partition("=")
        key, value = (key, value) if mark and key.strip().isidentifier() else ("model", item)
        if key in options:
            raise UserError(f"{text!r} gives {key} twice.")
        options[key.strip()] = value.strip()
    return name.strip(), options


def refuse_unknown(name: str, options: Mapping[str, str], known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"{name} has no option {', '.join(unknown)}. Known: {', '.join(known) or 'none'}.")


def number(options: Mapping[str, str], key: str, default: int, least: int, most: int) -> int:
    """A whole number within its limits."""
    text = options.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.lstrip("-").isdigit() or not least <= int(text) <= most:
        raise UserError(f"{key} is {text!r}; it must be a whole number from {least} to {most}.")
    return int(text)

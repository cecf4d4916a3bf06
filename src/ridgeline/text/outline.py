"""The outline of a tokenizer.json: its steps without its vocabulary, read before the `tokenizers` library gets it.

That library aborts the process, or loops without end, on some ill-formed steps. Refuses those, and steps that no
byte-level or SentencePiece BPE has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.kit.errors import UserError

MODELS = ("BPE",)
NORMALIZERS = ("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Strip", "Lowercase", "ByteLevel", "Nmt")
PRE_TOKENIZERS = (
    "Sequence", "Split", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit",
)  # fmt: skip
NESTED = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
MAX_STEPS = 64
MAX_PATTERN_CHARACTERS = 4096


class Model(msgspec.Struct, frozen=True):
    type: str | None = None


class Outline(msgspec.Struct, frozen=True):
    """Fields of tokenizer.json; the rest, and the vocabulary inside the model, is skipped over."""

    model: Model = Model()
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def read_outline(path: Path) -> Outline:
    """UserError when it is not JSON of that shape; OSError when it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Outline)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. Fetch it again.") from error


def steps_of(step: Mapping[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A step, or the steps of a sequence (under `key`) in order; whatever is no object is left out."""
    if step is None:
        return []
    several = step.get(key)
    return [one for one in several if isinstance(one, dict)] if isinstance(several, list) else [dict(step)]


def check_pipeline(path: Path) -> None:
    """UserError for steps that the library cannot be trusted with. OSError when the file cannot be read."""
    outline = read_outline(path)
    if outline.model.type not in (None, *MODELS):
        raise UserError(f"{path} is a {outline.model.type!r} tokenizer; supported: {', '.join(MODELS)}.")
    for part, known in (("normalizer", NORMALIZERS), ("pre_tokenizer", PRE_TOKENIZERS), ("decoder", None)):
        steps = steps_of(getattr(outline, part), NESTED[part])
        if len(steps) > MAX_STEPS:
            raise UserError(f"{path}: its {part} has {len(steps)} steps; the limit is {MAX_STEPS}.")
        for step in steps:
            _check_step(step, part, known, str(path))


def _check_step(step: Mapping[str, Any], part: str, known: tuple[str, ...] | None, source: str) -> None:
    kind = step.get("type")
    if known is not None and kind not in known:
        raise UserError(f"{source}: {part} step {kind!r} is not supported; known: {', '.join(known)}.")
    pattern = step.get("pattern")
    written = next(iter(pattern.values()), None) if isinstance(pattern, dict) else pattern
    for name, value in (("pattern", written), ("prepend", step.get("prepend"))):
        if name in step and (not isinstance(value, str) or not 0 < len(value) <= MAX_PATTERN_CHARACTERS):
            wanted = f"text of 1 to {MAX_PATTERN_CHARACTERS} characters"
            raise UserError(f"{source}: {part} step {kind!r} has a {name} that is not {wanted}.")
    if kind == "Sequence" and not isinstance(step.get(NESTED[part]), list):
        raise UserError(f"{source}: {part} is a sequence without steps. Fetch it again.")
    if any(isinstance(step.get(key), list) for key in NESTED.values()):
        raise UserError(f"{source}: {part} has a sequence inside a sequence, which is not supported.")

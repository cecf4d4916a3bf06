"""Tokenizer: text to ids and back, over the `tokenizers` library; built from a GGUF vocabulary or tokenizer.json.

Special tokens are parsed only when asked for, so a user's text cannot forge a turn. Decoding is by bytes: the ids of a
text are the bytes of their pieces, joined, read as UTF-8 with broken sequences replaced.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from ridgeline.kit.errors import UserError

from .alphabet import BYTE_OF_CHARACTER
from .outline import check_pipeline, read_outline, steps_of
from .vocabulary import Vocabulary

# Noncharacters (never in interchanged text). `shield` puts SHIELD inside spellings of special tokens, and writes its
# own two characters as ESCAPE and a digit; `encode` with special=True undoes both after special tokens were found.
SHIELD, ESCAPE = "\ufdd0", "\ufdd1"
MAX_FILE_BYTES = 1 << 28
KNOWN_PIECES = 4096  # tokens whose bytes are remembered
KNOWN_WORDS = 2048  # words whose tokens the library remembers (its own default, 10,000, takes megabytes after weeks)
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Thread-safe. bos: id or None. eos: ids that end a text. add_bos: whether texts of this model start with bos."""

    def __init__(
        self, pipeline: tokenizers.Tokenizer, *, bos: int | None = None, eos: Sequence[int] = (), add_bos: bool = False
    ) -> None:
        self._pipeline = pipeline
        with _guarded("cannot be read"):
            self._read(pipeline)
        self._known_piece = functools.lru_cache(KNOWN_PIECES)(self._piece)
        self._lock = threading.Lock()  # encode_special_tokens is a switch on the shared pipeline
        self.bos, self.eos, self.add_bos = bos, tuple(eos), add_bos and bos is not None

    def _read(self, pipeline: tokenizers.Tokenizer) -> None:
        """What of the pipeline is needed over and over."""
        self.size = pipeline.get_vocab_size()
        added = pipeline.get_added_tokens_decoder()
        self._added = {index: token.content for index, token in added.items()}
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        for content in self._added.values():
            if not content or SHIELD in content or ESCAPE in content:  # would be found for ever
                raise UserError(
                    f"the tokenizer has an added token {content!r}, which no text can tell. Fetch it again."
                )
        if callable(resize := getattr(pipeline.model, "_resize_cache", None)):
            resize(KNOWN_WORDS)
        words = sorted((added[index].content for index in self.special_ids), key=len, reverse=True)
        spellings = "|".join(re.escape(word) for word in words)
        self._special = re.compile(f"(?:{spellings})(?!{SHIELD})") if words else None
        self._byte_level, self._strips_space = _decoding(pipeline)

    @classmethod
    def from_vocabulary(
        cls, vocabulary: Vocabulary, *, bos: int | None = None, eos: Sequence[int] = (), add_bos: bool = False
    ) -> Tokenizer:
        with _guarded("cannot be rebuilt"):
            pipeline = vocabulary.build()
        return cls(pipeline, bos=bos, eos=eos, add_bos=add_bos)

    @classmethod
    def from_directory(cls, directory: Path, *, eos: Sequence[int] = ()) -> Tokenizer:
        """tokenizer.json, with tokenizer_config.json for bos and eos (`eos`: further ends of text, from the model's
        own configuration). UserError when missing or damaged.
        """
        path = directory / "tokenizer.json"
        config = read_config(directory)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise UserError(f"{path} is larger than {MAX_FILE_BYTES} bytes. It is no tokenizer.")
            check_pipeline(path)
            with _guarded("is damaged"):
                pipeline = tokenizers.Tokenizer.from_file(str(path))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}. Fetch tokenizer.json of this model.") from error
        except UserError:
            raise
        except Exception as error:  # the Rust side raises bare Exception
            raise UserError(f"{path} is damaged: {error}. Fetch it again.") from error
        pipeline.no_truncation()
        pipeline.no_padding()
        bos, end = (_token_id(pipeline, config.get(key)) for key in ("bos_token", "eos_token"))
        ends = dict.fromkeys((*eos, *(() if end is None else (end,))))
        return cls(pipeline, bos=bos, eos=tuple(ends), add_bos=starts_with_bos(directory))

    # -- text to ids

    def encode(self, text: str, *, add_bos: bool | None = None, special: bool = False) -> list[int]:
        """Token ids. add_bos None: as the model wants. special: spellings of special tokens become those tokens
        (for rendered chat templates); otherwise they are plain text. UserError for text that is not Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text has a lone surrogate at character {error.start}; it is not valid Unicode."
            ) from None
        ids = [self.bos] if (self.add_bos if add_bos is None else add_bos) and self.bos is not None else []
        if special and (SHIELD in text or ESCAPE in text):
            return ids + self._encode_shielded(text)
        return ids + self._run(text, special)

    def shield(self, text: str) -> str:
        """The text, so marked that `encode(special=True)` sees no special token in it and gives it unmarked."""
        text = text.replace(ESCAPE, ESCAPE + "1").replace(SHIELD, ESCAPE + "0")
        while self._special is not None and self._special.search(text):  # again: spellings may overlap
            text = self._special.sub(lambda found: found[0][0] + SHIELD + found[0][1:], text)
        return text

    def _run(self, text: str, special: bool) -> list[int]:
        with self._lock, _guarded("cannot encode this text"):
            self._pipeline.encode_special_tokens = not special
            ids: list[int] = self._pipeline.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_shielded(self, text: str) -> list[int]:
        """Special tokens first, then the plain runs between them without their marks."""
        ids: list[int] = []
        place = 0
        for found in self._special.finditer(text) if self._special else ():
            ids += self._run(_unshield(text[place : found.start()]), False)
            ids += self._run(found[0], True)
            place = found.end()
        return ids + self._run(_unshield(text[place:]), False)

    # -- ids to text

    def id_of(self, token: str) -> int | None:
        """Id of a token by its exact spelling."""
        index: int | None = self._pipeline.token_to_id(token)
        return index

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; empty for ids the model has but its tokenizer does not name (padding)."""
        return self._known_piece(token)

    def _piece(self, token: int) -> bytes:
        content = self._added.get(token)
        if content is not None:
            return content.encode("utf-8")
        spelled = self._pipeline.id_to_token(token) if 0 <= token < 1 << 31 else None
        if spelled is None:
            if token < 0:
                raise UserError(f"{token} is not a token id; ids are 0 and up.")
            return b""
        if self._byte_level:
            return bytes(BYTE_OF_CHARACTER[character] for character in spelled if character in BYTE_OF_CHARACTER)
        byte = BYTE_TOKEN.fullmatch(spelled)
        return bytes.fromhex(byte[1]) if byte else spelled.replace("▁", " ").encode("utf-8")

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of the ids; broken UTF-8 becomes U+FFFD. skip_special: control tokens leave no text."""
        detokenizer = self.detokenizer(skip_special=skip_special)
        return detokenizer.push(ids) + detokenizer.flush()

    def detokenizer(self, *, skip_special: bool = True) -> Detokenizer:
        return Detokenizer(self, skip_special=skip_special)

    @property
    def strips_first_space(self) -> bool:
        """SentencePiece: the first space of a text is the tokenizer's own."""
        return self._strips_space


class Detokenizer:
    """Text of a stream of ids, piece by piece: never half a character; the pieces joined are `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_first_space

    def push(self, ids: Iterable[int]) -> str:
        """Text that is now certain; an unfinished character waits."""
        data = b"".join(self._tokenizer.piece(token) for token in ids if token not in self._skipped)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What was still waiting, as U+FFFD. Ends the stream."""
        text = self._utf8.decode(b"", True)
        self._utf8.reset()
        return text


def read_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty when there is none."""
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES} bytes. It is no configuration.")
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}. Fetch it again.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object. Fetch it again.")
    return config


def starts_with_bos(directory: Path) -> bool:
    """Whether texts of this model begin with bos: add_bos_token, else what tokenizer.json's post-processor does."""
    config = read_config(directory)
    if "add_bos_token" in config:
        return config["add_bos_token"] is True
    bos = spelling(config.get("bos_token"))
    try:
        step = read_outline(directory / "tokenizer.json").post_processor
    except (OSError, UserError):
        return False  # Tokenizer.from_directory says what is wrong
    return bos is not None and any(_first_token(step) == bos for step in steps_of(step, "processors"))


def _first_token(step: Mapping[str, Any]) -> str | None:
    """The special token that a TemplateProcessing step puts before a text."""
    single = step.get("single")
    first = single[0] if isinstance(single, list) and single else None
    special = first.get("SpecialToken") if isinstance(first, dict) else None
    name = special.get("id") if isinstance(special, dict) and step.get("type") == "TemplateProcessing" else None
    return name if isinstance(name, str) else None


def spelling(entry: Any) -> str | None:
    """A special token in tokenizer_config.json: its text, or an object with `content`."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _token_id(pipeline: tokenizers.Tokenizer, entry: Any) -> int | None:
    token = spelling(entry)
    if token is None:
        return None
    try:
        index: int | None = pipeline.token_to_id(token)
    except UnicodeEncodeError as error:
        raise UserError(f"tokenizer_config.json names the token {token!r}, which is not Unicode.") from error
    return index


@contextlib.contextmanager
def _guarded(what: str) -> Iterator[None]:
    """A panic of the `tokenizers` library is a BaseException of a class it does not export; here it is a UserError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the model's tokenizer {what}: {error}. Fetch tokenizer.json of this model again.") from error


def _unshield(text: str) -> str:
    return text.replace(SHIELD, "").replace(ESCAPE + "0", SHIELD).replace(ESCAPE + "1", ESCAPE)


def _decoding(pipeline: tokenizers.Tokenizer) -> tuple[bool, bool]:
    """(byte level, first space is stripped) of the pipeline's decoder. UserError for one we do not reproduce."""
    description = json.loads(tokenizers.Tokenizer.to_str(_without_vocabulary(pipeline)))["decoder"] or {}
    steps = description.get("decoders", [description])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return True, False
    if kinds == ["Metaspace"]:
        return False, steps[0].get("prepend_scheme") != "never"
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "Replace" in kinds:
        return False, "Strip" in kinds
    raise UserError(f"the tokenizer decodes with {kinds}; byte-level BPE and SentencePiece are supported.")


def _without_vocabulary(pipeline: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The decoder alone, so that describing it does not write out 150,000 tokens."""
    bare = tokenizers.Tokenizer(tokenizers.models.BPE())
    if pipeline.decoder is not None:
        bare.decoder = pipeline.decoder
    return bare

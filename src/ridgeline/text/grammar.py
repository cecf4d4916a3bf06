"""Grammar: which tokens may come next so that an answer obeys a JSON schema, a regular expression or a grammar.

llguidance does the work (bench/grammar.py says why it), imported when first needed. Fails closed: what cannot be
enforced in full is refused before anything is made, and what cannot be followed any further ends with an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np

from ridgeline.kit.errors import UserError
from ridgeline.state.plan import Mask, SequenceId
from ridgeline.state.request import Grammar
from ridgeline.state.sequence import Sequence

from .tokenizer import Tokenizer

# A model that may write any white space tends to write nothing else for ever.
JSON_OPTIONS = {"lenient": False, "whitespace_pattern": r"[\x20\x0A\x09]{0,16}"}
SCHEMA_DEPTH = 32
KEPT, KEPT_BYTES = 256, 64 << 20
BYTES_A_CHARACTER = 256  # of a compiled grammar for one of its source, about (docs/findings/serve.md)
STEP_S = 0.25  # CPU time of one mask; the fuel below ends nearly all sooner
LIMITS = {"max_grammar_size": 100_000, "max_lexer_states": 16_000, "verbose_errors": False}


def library() -> Any:
    """llguidance. UserError when it is not there."""
    try:
        import llguidance  # noqa: PLC0415  optional
    except ImportError as error:
        raise UserError("grammars need llguidance. Install it: pip install 'ridgeline[grammar]'.") from error
    return llguidance


def source_of(grammar: Grammar) -> str:
    """What llguidance compiles. UserError for what is no JSON, or too deep."""
    matcher = library().LLMatcher
    if grammar.kind == "regex":
        return str(matcher.grammar_from_regex(grammar.text))
    if grammar.kind == "lark":
        return str(matcher.grammar_from_lark(grammar.text))
    try:
        what = msgspec.json.decode(grammar.text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"the {grammar.kind} is not valid JSON: {error}.") from error
    if grammar.kind == "choice":
        if not isinstance(what, list) or not what or not all(isinstance(one, str) and one for one in what):
            raise UserError("a choice is a list of texts, at least one and none empty.")
        return str(matcher.grammar_from_lark("start: " + " | ".join(msgspec.json.encode(one).decode() for one in what)))
    check_schema(what)
    return str(matcher.grammar_from_json_schema(grammar.text, overrides=JSON_OPTIONS))


def check_schema(schema: Any) -> None:
    """UserError for what is no schema, is nested too deep, or would change how schemas are read."""
    if not isinstance(schema, dict):
        raise UserError("a JSON schema is an object.")
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > SCHEMA_DEPTH:
            raise UserError(f"the JSON schema is nested deeper than {SCHEMA_DEPTH}.")
        if isinstance(value, dict):
            if "x-guidance" in value:
                raise UserError("the JSON schema may not set x-guidance.")
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]


class Lexicon:
    """A vocabulary as llguidance sees it. pieces: the bytes of every token; encode: bytes into ids; ends: ids that end
    an answer."""

    def __init__(
        self, pieces: list[bytes], special: Iterable[int], ends: tuple[int, ...], encode: Callable[[bytes], list[int]]
    ) -> None:
        if not ends:
            raise UserError("this model has no token that ends an answer, so no grammar can be enforced.")
        self.size, self.ends = len(pieces), ends
        words = _Words(pieces, special, ends[0], encode)
        self.words = library().LLTokenizer(words, n_vocab=len(pieces), eos_token=list(ends))

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocabulary: int, ends: tuple[int, ...]) -> Lexicon:
        """vocabulary: of the model; it may have more ids than its tokenizer names."""
        pieces = [tokenizer.piece(token) for token in range(vocabulary)]
        return cls(
            pieces, (one for one in tokenizer.special_ids if one < vocabulary), ends,
            lambda data: tokenizer.encode(data.decode("utf-8", "replace"), add_bos=False),
        )  # fmt: skip

    def compile(self, grammar: Grammar) -> Any:
        """A matcher at the beginning, its first mask made. UserError when the grammar cannot be enforced."""
        made = library().LLMatcher(self.words, source_of(grammar), limits=_limits(), log_level=0)
        if not made.is_error():
            made.compute_bitmask()
        if made.is_error() or made.is_stopped():
            said = " ".join(str(made.get_error() or "nothing obeys it").replace("<non-verbose/>", "").split())
            raise UserError(f"the {grammar.kind.replace('_', ' ')} cannot be enforced: {said[:300]}.")
        return made


class _Words:
    """The shape of a tokenizer that llguidance reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, pieces: list[bytes], special: Iterable[int], end: int, encode: Callable[[bytes], list[int]]
    ) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = pieces, sorted(special), end
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.encode() if isinstance(text, str) else text)


class _State:
    """Of one sequence: consumed: so many of its output tokens has the matcher seen."""

    __slots__ = ("consumed", "failure", "matcher")

    def __init__(self, matcher: Any) -> None:
        self.matcher, self.consumed, self.failure = matcher, 0, ""


class Rules:
    """Implements state.ports.TokenRules. prepare may be called by another thread; the rest by one thread only."""

    def __init__(self, make_lexicon: Callable[[], Lexicon], vocabulary: int, *, kept: int = KEPT) -> None:
        """vocabulary: of the model. kept: compiled grammars, at most."""
        self._most = kept
        self._make_lexicon, self._vocabulary = make_lexicon, vocabulary
        self._lexicon: Lexicon | None = None
        self._lock = threading.Lock()
        self._kept: dict[Grammar, Any] = {}  # compiled, last used last
        self._kept_bytes = 0
        self._states: dict[SequenceId, _State] = {}

    # -- compiling

    def is_prepared(self, grammar: Grammar) -> bool:
        return grammar in self._kept

    def prepare(self, grammar: Grammar) -> Any:
        """Compile what is not there yet. UserError when it cannot be enforced."""
        with self._lock:
            if (found := self._kept.pop(grammar, None)) is not None:
                self._kept[grammar] = found
                return found
            lexicon = self._lexicon = self._lexicon or self._make_lexicon()
        made = lexicon.compile(grammar)
        with self._lock:
            if grammar not in self._kept:
                self._kept[grammar] = made
                self._kept_bytes += _charge(grammar)
            while len(self._kept) > 1 and (len(self._kept) > self._most or self._kept_bytes > KEPT_BYTES):
                oldest = next(iter(self._kept))
                self._kept.pop(oldest)
                self._kept_bytes -= _charge(oldest)
        return made

    # -- state.ports.TokenRules

    def mask(self, sequence: Sequence, path: tuple[int, ...] = ()) -> Mask | None:
        request = sequence.request
        mask = None
        if request.sampling.grammar is not None:
            mask = self._allowed(sequence, request.sampling.grammar, path)
            if mask is None:
                return None
        if sequence.tokens_output + len(path) >= request.min_tokens:
            return mask
        longer = self._everything() if mask is None else mask.copy()
        for token in request.stop_ids:
            longer[token // 32] &= ~np.uint32(1 << token % 32)
        return longer if longer.any() else mask  # a grammar that can only end here does

    def failure(self, sequence: Sequence) -> str:
        state = self._states.get(sequence.id)
        return "" if state is None else state.failure

    def forget(self, sequence: SequenceId) -> None:
        self._states.pop(sequence, None)

    # -- inside

    def _allowed(self, sequence: Sequence, grammar: Grammar, path: tuple[int, ...]) -> Mask | None:
        began_s = time.thread_time()
        state = self._states.get(sequence.id)
        if state is None:
            state = self._states[sequence.id] = self._begin(grammar)
        if state.failure:
            return None
        matcher = state.matcher
        fresh = sequence.tokens[sequence.tokens_prompt + state.consumed :]
        if fresh and not matcher.consume_tokens(fresh):
            state.failure = f"the answer has left its grammar: {matcher.get_error()[:200]}"
            return None
        state.consumed += len(fresh)
        taken = matcher.try_consume_tokens(list(path)) if path else 0
        mask = None
        if taken == len(path):
            mask = np.zeros((self._vocabulary + 31) // 32, np.uint32)
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if taken:
            matcher.rollback(taken)
        if matcher.is_error() or (mask is not None and not mask.any()):
            state.failure = (
                f"the grammar cannot be followed any further: {matcher.get_error()[:200] or 'no token fits'}"
            )
        elif time.thread_time() - began_s > STEP_S:
            state.failure = f"the grammar takes more than {STEP_S:g} s for one token; make it simpler."
        return None if state.failure else mask

    def _begin(self, grammar: Grammar) -> _State:
        try:
            return _State(self.prepare(grammar).deep_copy())
        except UserError as error:
            state = _State(None)
            state.failure = str(error)
            return state

    def _everything(self) -> Mask:
        mask = np.full((self._vocabulary + 31) // 32, 0xFFFFFFFF, np.uint32)
        if self._vocabulary % 32:
            mask[-1] = (1 << self._vocabulary % 32) - 1
        return mask


def _limits() -> Any:
    return library().LLParserLimits(**LIMITS)


def _charge(grammar: Grammar) -> int:
    return (1 << 16) + BYTES_A_CHARACTER * len(grammar.text)

"""Choice: one answer being made. Token ids become text that is safe to show, and log-probabilities with their places.

Text is held back until it is whole UTF-8 and cannot begin a stop string. Works token by token, so that neither the
schedule nor how many tokens an event holds can change what is said.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ridgeline.state.event import Scored, TokenEvent
from ridgeline.text.hearing import Hearing, Part
from ridgeline.text.stop import StopStrings
from ridgeline.text.tokenizer import Tokenizer

from .answers import ChatLogprobs, TextLogprobs, TokenLogprob, TopToken

LEAST = -9999.0  # how minus infinity is written


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What one event adds. offsets: per token, characters before it. finish: set on the last. parts: the text taken
    apart, when somebody listens for more than text."""

    text: str
    tokens: tuple[int, ...]
    scored: tuple[Scored, ...]
    offsets: tuple[int, ...]
    finish: str | None = None
    parts: tuple[Part, ...] = ()


class Choice:
    """offset: characters of the prompt, where text_offset of the first token begins. hearing: takes the text apart."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], offset: int = 0, hearing: Hearing | None = None
    ) -> None:
        self._hearing = hearing
        self._is_plain = hearing is None and not stops
        self.reasoning = 0  # tokens that were thoughts
        self._detokenizer = tokenizer.detokenizer()
        self._stop = StopStrings(stops)
        self._offset = offset
        self.tokens = 0
        self.cached = 0
        self.finish: str | None = None
        self.first_s: float | None = None
        self.last_s: float | None = None

    def take(self, event: TokenEvent) -> Delta:
        """Once `finish` is set, later events are not for this choice any more."""
        if self._is_plain and event.finish is None and len(event.tokens) == 1 and self.first_s is not None:
            return self._take_one(event)
        shown, offsets = "", []
        parts: list[Part] = []
        finish, hearing = event.finish, self._hearing
        for place, token in enumerate(event.tokens):
            is_stop_id = event.finish == "stop" and place == len(event.tokens) - 1  # not text
            offsets.append(self._offset)
            text = "" if is_stop_id else self._detokenizer.push((token,))
            self._offset += len(text)
            safe = self._stop.push(text)
            shown += safe
            if hearing is not None:
                self.reasoning += hearing.is_thinking
                parts += hearing.push(safe)
            if self._stop.matched is not None:
                finish = "stop"
                break
        if finish is not None and self._stop.matched is None:
            rest = self._stop.push(self._detokenizer.flush()) + self._stop.flush()
            shown += rest
            parts += hearing.push(rest) if hearing is not None else []
            finish = "stop" if self._stop.matched is not None else finish
        if finish is not None and hearing is not None:
            parts += hearing.flush()
        if self.first_s is None and event.tokens:
            self.first_s, self.cached = event.at_s, event.tokens_cached
        if event.tokens:
            self.last_s = event.at_s
        self.finish = finish
        self.tokens += len(offsets)
        return Delta(
            shown, event.tokens[: len(offsets)], event.scored[: len(offsets)], tuple(offsets), finish, tuple(parts)
        )

    def _take_one(self, event: TokenEvent) -> Delta:
        """What `take` comes to for a token in the middle that nobody looks into."""
        begin, text = self._offset, self._detokenizer.push(event.tokens)
        self._offset = begin + len(text)
        self.last_s = event.at_s
        self.tokens += 1
        return Delta(text, event.tokens, event.scored[:1], (begin,))


# -- log-probabilities, in the two shapes


def spell(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; one that is no whole character as `bytes:\\xNN`."""
    piece = tokenizer.piece(token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return spell_bytes(piece)


def spell_bytes(piece: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def chat_logprobs(tokenizer: Tokenizer, scored: Sequence[Scored], top: int) -> ChatLogprobs:
    """The chat shape."""

    def named(token: int, logprob: float) -> TopToken:
        return TopToken(spell(tokenizer, token), max(logprob, LEAST), list(tokenizer.piece(token)))

    content = []
    for one in scored:
        chosen = named(one.token, one.logprob)
        best = [named(token, logprob) for token, logprob in one.top[:top]]
        content.append(TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, best))
    return ChatLogprobs(content)


def text_logprobs(tokenizer: Tokenizer, scored: Sequence[Scored], offsets: Sequence[int]) -> TextLogprobs:
    """The completions shape."""
    return TextLogprobs(
        [spell(tokenizer, one.token) for one in scored],
        [max(one.logprob, LEAST) for one in scored],
        [_best(tokenizer, one) for one in scored],
        list(offsets),
    )


def _best(tokenizer: Tokenizer, scored: Scored) -> dict[str, float]:
    """The most likely tokens and the chosen one; of two that look alike the second is written in bytes."""
    found: dict[str, float] = {}
    ids = set()
    for token, logprob in (*scored.top, (scored.token, scored.logprob)):
        if token in ids:
            continue
        ids.add(token)
        name = spell(tokenizer, token)
        found[spell_bytes(tokenizer.piece(token)) if name in found else name] = max(logprob, LEAST)
    return found


def prompt_logprobs(tokenizer: Tokenizer, prompt: Sequence[int], scored: Sequence[Scored], silent: int) -> TextLogprobs:
    """Of an echoed prompt: the first token has none. silent: leading tokens that the caller did not write."""
    detokenizer = tokenizer.detokenizer(skip_special=False)
    offsets, characters = [], 0
    for place, token in enumerate(prompt):
        offsets.append(characters)
        if place >= silent:
            characters += len(detokenizer.push((token,)))
    rest = text_logprobs(tokenizer, scored, offsets[1:])
    return TextLogprobs(
        [spell(tokenizer, prompt[0]), *rest.tokens], [None, *rest.token_logprobs], [None, *rest.top_logprobs], offsets
    )


def joined(one: TextLogprobs | None, other: TextLogprobs | None) -> TextLogprobs | None:
    """One after the other."""
    if one is None or other is None:
        return one or other
    return TextLogprobs(
        one.tokens + other.tokens, one.token_logprobs + other.token_logprobs, one.top_logprobs + other.top_logprobs,
        one.text_offset + other.text_offset,
    )  # fmt: skip

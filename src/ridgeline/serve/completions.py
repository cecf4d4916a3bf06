"""Completions: /v1/completions, whole and streamed; many prompts, echo, and true log-probabilities of prompts.

A prompt given as text is raw: its caller owns it, control tokens included (parse_special: false refuses them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import UnsetType
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.state.event import TokenEvent
from ridgeline.state.request import Request

from .answering import answer, begin_note, check_fields, chosen
from .answers import Account, TextChoice, TextCompletion, TextLogprobs
from .asks import CompletionRequest
from .choice import Choice, Delta, joined, prompt_logprobs, text_logprobs
from .constraint import grammar_of
from .fields import MOST_CHOICES
from .reading import parse
from .refusal import invalid, too_long
from .served import DEFAULTS, Served
from .shape import Shape

DECODER = msgspec.json.Decoder(CompletionRequest)
MOST_PROMPTS = 256


async def completions(request: HttpRequest) -> Response:
    """The endpoint."""
    body, note = await begin_note(request)
    ask = parse(DECODER, body)
    served = chosen(request, ask.model)
    check_fields(ask)
    if ask.max_tokens == 0 and not ask.echo:
        raise invalid("`max_tokens` is 0; that needs `echo: true`.", "max_tokens")
    given = prompts_of(ask)
    if len(given) * (ask.n or 1) > MOST_CHOICES:
        raise invalid(f"{len(given)} prompts x n {ask.n} are more than {MOST_CHOICES} choices; send fewer.", "n")
    began_ns = request.state.since_ns()
    prompts = await served.off_loop(lambda: [encode(served, ask, prompt) for prompt in given])
    note.before["tokenize"] = request.state.since_ns() - began_ns
    shape = TextShape(served, ask, request.state.name, prompts)
    if ask.truncate_prompt_tokens is not None and ask.echo:
        raise invalid("`truncate_prompt_tokens` and `echo` do not go together.", "truncate_prompt_tokens")
    shape.truncate()
    shape.read(given)
    shape.grammar, param = grammar_of(ask)
    await served.check_grammar(shape.grammar, param, note)
    return await answer(request, shape, note)


def prompts_of(ask: CompletionRequest) -> list[str | list[int]]:
    return kinds_of(ask.prompt, "prompt")


def kinds_of(given: Any, param: str) -> list[str | list[int]]:
    """One text, texts, one list of ids, or lists of ids; never a mixture."""
    if isinstance(given, str):
        return [given]
    kinds = {type(item) for item in given}
    if len(kinds) != 1:
        raise invalid(f"`{param}` mixes texts and token ids; send one kind.", param)
    if kinds == {int}:
        return [given]
    if len(given) > MOST_PROMPTS:
        raise invalid(f"`{param}` has {len(given)} of them; the limit is {MOST_PROMPTS}. Send several requests.", param)
    made: list[str | list[int]] = given
    return made


def encode(served: Served, ask: CompletionRequest, prompt: str | list[int]) -> tuple[int, ...]:
    """Refusal for what has no tokens, or tokens that are none."""
    if isinstance(prompt, str):
        special, bos = ask.parse_special is not False, ask.add_special_tokens is not False
        ids = served.encode(prompt, special=special, bos=bos)
    else:
        ids = tuple(prompt)
    served.check_ids(ids, "prompt")
    return ids


class TextShape(Shape):
    prefix = "cmpl-"
    asked: CompletionRequest

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.echoed: set[int] = set()
        self.collected: dict[int, list[tuple[str, TextLogprobs | None, Delta]]] = {}

    def read(self, given: Sequence[str | list[int]]) -> None:
        """The prompts as text: what echo repeats, and where offsets begin."""
        self.texts: list[str] = []
        self.silent: list[int] = []  # leading tokens that the caller did not write
        tokenizer = self.served.tokenizer
        for prompt, ids in zip(given, self.prompts, strict=True):
            is_text = isinstance(prompt, str)
            self.texts.append(prompt if isinstance(prompt, str) else tokenizer.decode(ids, skip_special=False))
            wrote_bos = is_text and tokenizer.bos is not None and self._spells_bos(self.texts[-1])
            self.silent.append(int(is_text and not wrote_bos and ids[0] == tokenizer.bos))
        self.choices = [Choice(tokenizer, self.asked.stops, len(text)) for text in self.texts for _ in range(self.each)]

    def _spells_bos(self, text: str) -> bool:
        tokenizer = self.served.tokenizer
        return tokenizer.bos is not None and text.startswith(tokenizer.decode([tokenizer.bos], skip_special=False))

    @property
    def is_scoring(self) -> bool:
        return bool(self.asked.echo) and (self.asked.logprobs is not None or self.asked.max_tokens == 0)

    def requests(self, name: str, tenant: str) -> list[Request]:
        asked, context = self.asked, self.served.context
        most = int(DEFAULTS["max_tokens"]) if asked.max_tokens is None else asked.max_tokens
        more = {"prompt_logprobs": asked.logprobs or 0} if self.is_scoring else {}
        made: list[Request] = []
        for place, ids in enumerate(self.prompts):
            if len(ids) + most > context:
                raise too_long(context, len(ids), most, "prompt")
            made += self.served.requests(
                asked, f"{name}-{place}", ids, most, tenant, logprobs=asked.logprobs, grammar=self.grammar, **more
            )
        return made

    # -- streamed

    def opening(self) -> list[TextCompletion]:
        return []

    def chunks(self, index: int, delta: Delta, event: TokenEvent) -> Iterator[TextCompletion]:
        text, logprobs = self._said(index, delta, event)
        if text or logprobs or (delta.tokens and self.asked.return_token_ids):
            yield self._chunk([TextChoice(index, text, logprobs, None, self.ids(delta.tokens))])
        if delta.finish is not None:
            yield self._chunk([TextChoice(index, "", None, delta.finish)])

    def _said(self, index: int, delta: Delta, event: TokenEvent) -> tuple[str, TextLogprobs | None]:
        """With the echoed prompt before the first token."""
        place, tokenizer = index // self.each, self.served.tokenizer
        logprobs = text_logprobs(tokenizer, delta.scored, delta.offsets) if delta.scored else None
        if not self.asked.echo or index in self.echoed:
            return delta.text, logprobs
        self.echoed.add(index)
        if self.asked.logprobs is not None:
            prompt = prompt_logprobs(tokenizer, self.prompts[place], event.prompt_scored, self.silent[place])
            logprobs = joined(prompt, logprobs)
        return self.texts[place] + delta.text, logprobs

    def closing(self, account: Account | UnsetType) -> TextCompletion:
        return self._with_usage(self._chunk([]), account)

    def _with_usage(self, chunk: TextCompletion, account: Account | UnsetType) -> TextCompletion:
        return msgspec.structs.replace(
            chunk, usage=self.usage(), account=account, truncated_prompt_tokens=self.truncated
        )

    def _chunk(self, choices: list[TextChoice]) -> TextCompletion:
        return TextCompletion(
            id=self.id, created=self.created, model=self.served.name, system_fingerprint=self.served.fingerprint,
            choices=choices, usage=self.running,
        )  # fmt: skip

    # -- whole

    def add(self, index: int, delta: Delta, event: TokenEvent) -> None:
        text, logprobs = self._said(index, delta, event)
        self.collected.setdefault(index, []).append((text, logprobs, delta))

    def whole(self, account: Account | UnsetType) -> TextCompletion:
        choices = [self._choice(index) for index in range(len(self.choices))]
        return self._with_usage(self._chunk(choices), account)

    def _choice(self, index: int) -> TextChoice:
        parts = self.collected[index]
        logprobs: TextLogprobs | None = None
        for _, more, _ in parts:
            logprobs = joined(logprobs, more)
        if logprobs is None and self.asked.logprobs is not None:
            logprobs = TextLogprobs([], [], [], [])
        tokens = [token for _, _, delta in parts for token in delta.tokens]
        return TextChoice(index, "".join(text for text, _, _ in parts), logprobs, parts[-1][2].finish, self.ids(tokens))

"""Request: what somebody asked for. Frozen; validated where it is made (engine client, server)."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from ridgeline.kit.errors import UserError

MAX_LOGPROBS = 20
MAX_GRAMMAR_BYTES = 1 << 18  # of what is handed over; servers allow their callers less

GrammarKind = Literal["json_schema", "regex", "choice", "lark"]


class Grammar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an answer must obey, to its last token; it may still be cut off by max_tokens.

    text: a JSON schema, a regular expression (of the whole answer), a JSON list of texts to choose from, or a grammar
    in llguidance's Lark. text/grammar.py enforces it.
    """

    kind: GrammarKind
    text: str


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the next token is chosen from the logits. The defaults are greedy.

    Order of application: logit_bias, penalties, (greedy if temperature == 0), temperature, top_k, top_p, min_p.
    `seed` keys the random numbers together with the choice index and the position, so a draw does not
    depend on the schedule (DESIGN promise 1).
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # > 1 discourages tokens of prompt and output (multiplicative)
    presence_penalty: float = 0.0  # subtracted once from tokens already in the output
    frequency_penalty: float = 0.0  # subtracted per occurrence in the output
    logit_bias: dict[int, float] = {}
    seed: int = 0
    logprobs: int | None = None  # also return this many most likely tokens (0: only the chosen one)
    grammar: Grammar | None = None

    def check(self, vocabulary: int) -> None:
        """Raise UserError for values outside their range."""
        rules = (
            (self.temperature >= 0.0, "temperature", self.temperature, ">= 0"),
            (self.top_k >= 0, "top_k", self.top_k, ">= 0 (0: off)"),
            (0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]"),
            (0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "in [0, 1]"),
            (self.repetition_penalty > 0.0, "repetition_penalty", self.repetition_penalty, "> 0"),
            (-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", self.presence_penalty, "in [-2, 2]"),
            (-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", self.frequency_penalty, "in [-2, 2]"),
            (0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2^63)"),
            (
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                "logprobs",
                self.logprobs,
                f"in [0, {MAX_LOGPROBS}]",
            ),
        )
        for is_valid, name, value, limit in rules:
            if not is_valid:  # NaN fails every comparison and lands here too
                raise UserError(f"{name} is {value}; it must be {limit}.")
        for token, bias in self.logit_bias.items():
            if not 0 <= token < vocabulary:
                raise UserError(f"logit_bias names token {token}; this model's ids are 0 to {vocabulary - 1}.")
            if not -100.0 <= bias <= 100.0:
                raise UserError(f"logit_bias of token {token} is {bias}; it must be in [-100, 100].")
        if self.grammar is not None and len(self.grammar.text) > MAX_GRAMMAR_BYTES:
            raise UserError(f"the grammar has {len(self.grammar.text)} characters; the limit is {MAX_GRAMMAR_BYTES}.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_history(self) -> bool:
        """Whether the choice depends on the tokens before it."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One generation asked for. `arrival_s` is on the engine's clock; None: when it reaches the engine."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_ids: tuple[int, ...] = ()  # generation ends after one of these (it is the last token of the output)
    ignore_stop: bool = False
    prompt_logprobs: int | None = None  # also score the prompt: this many most likely tokens per position
    priority: int = 0  # lower runs first, for policies that care
    choice: int = 0  # index among the choices of one user request; keys the random numbers
    arrival_s: float | None = None
    deadline_s: float | None = None  # seconds from arrival by which the last token is wanted; never cuts anything short
    ttft_deadline_s: float | None = None  # the same for the first token
    tenant: str = ""  # on whose account, for policies that share between tenants
    hidden_every: int = 0  # also tell the last hidden state, before every so manyth output token; 0: never
    hidden_mean: bool = False  # the first one told is the mean of the whole prompt's; needs prompt_logprobs
    min_tokens: int = 0  # so many are made before one of stop_ids may be
    salt: str | None = None  # requests share computed beginnings when their salts are equal; None: the tenant's

    @property
    def is_ruled(self) -> bool:
        """Whether not every token may be chosen everywhere."""
        return self.sampling.grammar is not None or self.min_tokens > 0

    @property
    def sharing_salt(self) -> str:
        return self.tenant if self.salt is None else self.salt

    def tokens_most(self, context: int) -> int:
        """Most tokens whose state is ever computed: the last token of the output is chosen but never run."""
        return min(len(self.prompt) + max(self.max_tokens - 1, 0), context)

    def check(self, vocabulary: int, context: int) -> None:
        """Raise UserError for what cannot be done as asked; nothing is truncated."""
        self.sampling.check(vocabulary)
        tokens = len(self.prompt)
        if not tokens:
            raise UserError("the prompt is empty; give at least one token.")
        _check_ids(self.prompt, vocabulary, "the prompt")
        _check_ids(self.stop_ids, vocabulary, "stop_ids")
        if self.max_tokens < 0 or (self.max_tokens == 0 and self.prompt_logprobs is None):
            raise UserError(f"max_tokens is {self.max_tokens}; it must be >= 1 (0 only together with prompt_logprobs).")
        if not 0 <= self.hidden_every < 1 << 31:
            raise UserError(f"hidden_every is {self.hidden_every}; it must be at least 0 (0: never).")
        if self.hidden_mean and (self.prompt_logprobs is None or not self.hidden_every):
            raise UserError("hidden_mean needs hidden_every and prompt_logprobs: every position is looked at.")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UserError(f"min_tokens is {self.min_tokens}; it must be from 0 to max_tokens, {self.max_tokens}.")
        if self.sampling.grammar is not None and (self.ignore_stop or not self.stop_ids):
            raise UserError("an answer with a grammar ends when the grammar does; ignore_stop is against it.")
        if self.prompt_logprobs is not None and not 0 <= self.prompt_logprobs <= MAX_LOGPROBS:
            raise UserError(f"prompt_logprobs is {self.prompt_logprobs}; it must be in [0, {MAX_LOGPROBS}].")
        for name, seconds in (("deadline_s", self.deadline_s), ("ttft_deadline_s", self.ttft_deadline_s)):
            if seconds is not None and not 0.0 < seconds < math.inf:
                raise UserError(f"{name} is {seconds}; it must be a positive number of seconds from arrival.")
        room = context - 1 if self.max_tokens else context
        if tokens > room:
            raise UserError(
                f"the prompt has {tokens} tokens; a context of {context} leaves room for {room}. "
                f"Shorten it, or start with a larger --context if the model has one."
            )


def _check_ids(ids: tuple[int, ...], vocabulary: int, where: str) -> None:
    if ids and (min(ids) < 0 or max(ids) >= vocabulary):
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise UserError(f"{where} holds token {wrong}; this model's ids are 0 to {vocabulary - 1}.")

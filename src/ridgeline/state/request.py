"""Request: what somebody asked for. Frozen; validated where it is made (engine client, server)."""

from __future__ import annotations

import msgspec

from ridgeline.kit.errors import UserError

MAX_LOGPROBS = 20


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

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


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

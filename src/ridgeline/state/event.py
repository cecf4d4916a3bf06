"""TokenEvent: what leaves the engine. Token ids only; text is made by the reader."""

from __future__ import annotations

import msgspec

HANDED_ON, RETURNED, STAYED = "handed on", "returned", "stayed"


class Scored(msgspec.Struct, frozen=True):
    """Log-probabilities of one token. `top`: (token, logprob), most likely first."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class TokenEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """New tokens of one request.

    finish: None while it runs; "stop" (a stop id), "length", "cancelled" or "error" with the last event; between
    engines also HANDED_ON (another goes on), RETURNED (the way there broke; error says which) and STAYED (it was to
    move and did not; more will come).
    at_s: engine clock when the step that made them ended. What has its default does not travel: a token takes 45 bytes.
    """

    request: str
    tokens: tuple[int, ...]
    at_s: float
    scored: tuple[Scored, ...] = ()
    prompt_scored: tuple[Scored, ...] = ()  # positions 1.. of the prompt, sent with the first event
    finish: str | None = None
    error: str | None = None
    preemptions: int = 0
    tokens_recomputed: int = 0
    tokens_cached: int = 0  # of its beginning, computed by others before
    tokens_guessed: int = 0  # judged so far (I1)
    tokens_accepted: int = 0
    hidden: bytes = b""  # float32: last hidden state of the token before `tokens` (Request.hidden_every)
    length: float = 0.0  # output tokens it will have in the end, as just predicted (E6); 0: not predicted anew
    planned_s: float = 0.0  # with the first event: when the engine first planned it, on the engine's clock

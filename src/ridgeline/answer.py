"""Answer: one request under way, its events made text; and what is given to whoever asked: Piece, Completion, Score.

Part of the Python face (llm.py). Owns the text of an answer and when it ends early; no engine, no policy.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from ridgeline.cluster.cluster import Cluster
from ridgeline.engine.client import EngineClient
from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.perf.intervals import ClientNote
from ridgeline.perf.ledger import RequestLedger
from ridgeline.state.event import Scored, TokenEvent
from ridgeline.state.request import Request
from ridgeline.text.stop import StopStrings
from ridgeline.text.tokenizer import Tokenizer

Inbox = queue.SimpleQueue["tuple[Answer, TokenEvent | RidgelineError]"]


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one answer; `finish` is set on the last."""

    text: str
    tokens: tuple[int, ...]
    scored: tuple[Scored, ...] = ()
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer. `tokens` holds every generated id, the stop id included; `text` ends before it.

    Times in seconds from arrival at the engine; ttft_s: to the first token, e2e_s: to the last. account: where its time
    went and what it caused; only when it was asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    prompt_tokens: int
    ttft_s: float
    e2e_s: float
    scored: tuple[Scored, ...] = ()
    prompt_scored: tuple[Scored, ...] = ()
    account: RequestLedger | None = None

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first (A24); None for fewer than two."""
        return (self.e2e_s - self.ttft_s) / (len(self.tokens) - 1) if len(self.tokens) > 1 else None


@dataclass(frozen=True, slots=True)
class Score:
    """Natural log-probability of each token of a text given those before it (the first has none)."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # of tokens[1:]
    scored: tuple[Scored, ...]

    @property
    def total(self) -> float:
        return sum(self.logprobs)


class Answer:
    """One request under way: turns its TokenEvents into text, and ends it at a stop string."""

    def __init__(
        self, client: EngineClient | Cluster, request: Request, tokenizer: Tokenizer | None, stop: tuple[str, ...],
        note: ClientNote, inbox: Inbox | None = None,
    ) -> None:  # fmt: skip
        """inbox: where events go, together with whose they are; None: an own one."""
        self._client, self.name = client, request.id
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer()
        if stop and tokenizer is None:
            raise UserError("stop strings need a tokenizer; this model has none.")
        self._stop = StopStrings(stop)
        self._events: list[TokenEvent] = []
        self._pieces: list[Piece] = []
        self.is_done = self._is_cancelled = False
        self._note = note
        self._worked: list[tuple[float, float]] = []  # text was made
        self._stalled: list[tuple[float, float]] = []  # nobody listened
        inbox = self.inbox = inbox or queue.SimpleQueue()
        self._request = msgspec.structs.replace(request, arrival_s=time.perf_counter())
        client.submit_to(self._request, lambda event: inbox.put((self, event)))

    def take(self, event: TokenEvent | RidgelineError) -> Piece:
        """The text of one event; raises what kept the request from going on."""
        if isinstance(event, RidgelineError):
            self.is_done = True
            raise event
        began_s = time.perf_counter()
        self._events.append(event)
        piece = self._piece(event)
        self._pieces.append(piece)
        ended_s = time.perf_counter()
        self._worked.append((began_s, ended_s))
        if piece.finish is not None:
            self.is_done = True
            self._close_early(event)
            self._note.close(event.at_s, ended_s, {"tokenize": self._worked, "client_stall": self._stalled})
        return piece

    def pieces(self) -> Iterator[Piece]:
        while not self.is_done:
            _, event = self.inbox.get()
            piece = self.take(event)
            given_s = time.perf_counter()
            yield piece
            self._stalled.append((given_s, time.perf_counter()))

    def completion(self) -> Completion:
        """When it is done."""
        pieces, start = self._pieces, self._request.arrival_s or 0.0
        tokens = tuple(token for piece in pieces for token in piece.tokens)
        first = next((event.at_s for event in self._events if event.tokens), self._events[-1].at_s)
        return Completion(
            "".join(piece.text for piece in pieces), tokens, pieces[-1].finish or "", len(self._request.prompt),
            first - start, self._events[-1].at_s - start,
            tuple(scored for piece in pieces for scored in piece.scored),
            tuple(scored for event in self._events for scored in event.prompt_scored),
        )  # fmt: skip

    def finish(self) -> Completion:
        for _ in self.pieces():
            pass
        return self.completion()

    def score(self) -> Score:
        done = self.finish()
        return Score(self._request.prompt, tuple(s.logprob for s in done.prompt_scored), done.prompt_scored)

    def cancel(self) -> None:
        if not self.is_done and not self._is_cancelled:
            self._is_cancelled = True
            self._client.cancel(self._request.id)

    def _piece(self, event: TokenEvent) -> Piece:
        finish = event.finish
        if self._detokenizer is None:
            return Piece("", event.tokens, event.scored, finish)
        shown = event.tokens[:-1] if finish == "stop" else event.tokens  # the stop id itself is not text
        text = self._stop.push(self._detokenizer.push(shown) + (self._detokenizer.flush() if finish else ""))
        if self._stop.matched is not None:
            return Piece(text, event.tokens, event.scored, "stop")
        return Piece(text + (self._stop.flush() if finish else ""), event.tokens, event.scored, finish)

    def _close_early(self, event: TokenEvent) -> None:
        if event.finish is None:  # a stop string ended it; the engine does not know yet
            self._client.cancel(self._request.id)

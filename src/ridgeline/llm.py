"""LLM and AsyncLLM: the Python face. Text in, text out; the engine runs in its own process.

A composition root: joins models (tokenizer), text (templates, stop strings) and engine (client). Owns no policy.
"""

# size: the public face: one method a thing a person asks for

from __future__ import annotations

import asyncio
import functools
import itertools
import queue
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import msgspec

from ridgeline.cluster.build import connect, shares
from ridgeline.cluster.cluster import Cluster
from ridgeline.engine.client import Deliver, EngineClient, Stream
from ridgeline.engine.config import EngineConfig
from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.kit.version import __version__
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.models.pull import TABLE, Progress, pull
from ridgeline.ops.program import Program
from ridgeline.perf.account import StepTable
from ridgeline.perf.evidence import Evidence
from ridgeline.perf.intervals import ClientNote, ClientNotes
from ridgeline.perf.joined import joined_ledger, one_after_another
from ridgeline.perf.ledger import RequestLedger, RunLedger
from ridgeline.perf.meters import Watch, open_meter
from ridgeline.perf.observe import Seen, evidence_of, window_of
from ridgeline.perf.pages import Pages
from ridgeline.perf.recording import Recording
from ridgeline.perf.summary import AccountSummary, summarise
from ridgeline.perf.totals import Window
from ridgeline.perf.verdict import Verdict, judge
from ridgeline.run.machine import Machine, load_or_measure
from ridgeline.state.event import Scored, TokenEvent
from ridgeline.state.messages import EngineFacts, Pulse
from ridgeline.state.request import Request, Sampling
from ridgeline.text.stop import StopStrings
from ridgeline.text.template import render_chat
from ridgeline.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
Inbox = queue.SimpleQueue["tuple[_Run, TokenEvent | RidgelineError]"]
SERVICE = (
    "priority",
    "tenant",
    "deadline_s",
    "ttft_deadline_s",
    "min_tokens",
    "salt",
)  # of Request: what policies go by


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


class LLM:
    """A model behind an engine process. Known names are pulled on first use.

    `options` are the fields of EngineConfig (weights, kv, threads, context, max_sequences, ...); unknown ones raise
    UserError. Use as a context manager, or call close().
    """

    def __init__(
        self, model: str = "smollm2-135m", *, progress: Progress | None = None,
        command: tuple[str, ...] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """command: starts the engine's process instead of ours (as `taskset -c 0 python -P -m ridgeline.worker`)."""
        if model in TABLE:
            pull(model, progress)
        self.config = _config(model, options)
        self._numbers = itertools.count()
        self._described = describe(model, weights=self.config.weights)
        self._tokenizer = self._described.tokenizer()
        self._notes = ClientNotes()
        self._pages = Pages()
        self._command = command
        self._client: EngineClient | Cluster = connect(self.config, command)
        self._since_s = time.perf_counter()  # when the account began
        meter = open_meter()
        self.watch = None if meter is None else Watch(meter)  # joules since the last reset; None: no meter here

    # -- asking

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, max_tokens: int = 128, stop: str | Sequence[str] = (),
        ignore_stop: bool = False, sampling: Sampling | None = None, n: int = 1, account: bool = False, **settings: Any,
    ) -> list[Completion]:  # fmt: skip
        """Complete every prompt (text or token ids); all run together. `settings` are fields of Sampling, and what
        policies go by: priority, tenant, deadline_s, ttft_deadline_s (of Request); also min_tokens and salt.

        With n > 1 the answers of a prompt stand next to each other, differing in their random numbers only. account:
        every Completion carries its own.
        """
        service = _service(settings)
        asked = _sampling(sampling, settings)
        inbox: Inbox = queue.SimpleQueue()
        runs = [
            self._start(prompt, max_tokens, stop, ignore_stop, asked, choice, service=service, inbox=inbox)
            for prompt in _as_list(prompts)
            for choice in range(n)
        ]
        return self._completions(runs, account)

    def stream(
        self, prompt: Prompt, *, max_tokens: int = 128, stop: str | Sequence[str] = (), ignore_stop: bool = False,
        sampling: Sampling | None = None, special: bool = False, **settings: Any,
    ) -> Iterator[Piece]:  # fmt: skip
        """Pieces of one answer as they are made. Closing the iterator early cancels the request."""
        service = _service(settings)
        asked = _sampling(sampling, settings)
        run = self._start(prompt, max_tokens, stop, ignore_stop, asked, special=special, service=service)
        try:
            yield from run.pieces()
        finally:
            run.cancel()

    def chat(self, messages: Sequence[Message], *, account: bool = False, **options: Any) -> Completion:
        """One answer to a conversation, through the model's own chat template."""
        note = _begin()
        run = self._start_ids(self.render(messages, note), note=note, **_split(options))
        return self._completions([run], account)[0]

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        """As chat, in pieces."""
        note = _begin()
        run = self._start_ids(self.render(messages, note), note=note, **_split(options))
        try:
            yield from run.pieces()
        finally:
            run.cancel()

    def score(self, prompts: Prompt | Sequence[Prompt], *, top: int = 0) -> list[Score]:
        """Log-probabilities of given texts (at least two tokens each); `top`: also the most likely tokens."""
        runs = []
        for prompt in _as_list(prompts):
            ids = self.encode(prompt)
            if len(ids) < 2:
                raise UserError(f"a text of {len(ids)} token(s) cannot be scored; give at least two.")
            runs.append(self._submit(Request(self._name(), ids, 0, prompt_logprobs=top)))
        return [run.score() for run in runs]

    # -- text

    @property
    def has_text(self) -> bool:
        """Whether the model came with a tokenizer."""
        return self._tokenizer is not None

    @property
    def has_chat(self) -> bool:
        """Whether conversations can be rendered."""
        return self._tokenizer is not None and self._described.chat_template is not None

    @property
    def chat_template(self) -> str | None:
        """The model's own, as its files have it."""
        return self._described.chat_template

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise UserError(f"{self.config.model} has no tokenizer; give token ids instead of text.")
        return self._tokenizer

    def encode(self, prompt: Prompt, *, special: bool = False) -> tuple[int, ...]:
        """Token ids of text (with the model's beginning-of-sequence token if it wants one); ids pass through."""
        if isinstance(prompt, str):
            return tuple(self.tokenizer.encode(prompt, add_bos=self._described.spec.add_bos, special=special))
        return tuple(prompt)

    def render(self, messages: Sequence[Message], note: ClientNote | None = None) -> tuple[int, ...]:
        """Token ids of a conversation, ready for an answer. note: gets the time that took."""
        template = self._described.chat_template
        if template is None:
            raise UserError(
                f"{self.config.model} has no chat template; use generate() with plain text (in the shell: --raw)."
            )
        began_ns = time.perf_counter_ns()
        text = render_chat(template, messages, tokenizer=self.tokenizer)
        rendered_ns = time.perf_counter_ns()
        ids = tuple(self.tokenizer.encode(text, add_bos=False, special=True))
        if note is not None:
            note.before = {"render": rendered_ns - began_ns, "tokenize": time.perf_counter_ns() - rendered_ns}
        return ids

    # -- engine

    @property
    def facts(self) -> EngineFacts:
        """What the engine said when it was ready: bodies, bytes, limits."""
        return self._client.facts

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about how the model's file was read, and about who computes what where."""
        return (*self._described.notes, *filter(None, [shares(self.config)]))

    def submit(self, request: Request) -> Stream:
        """A raw request; returns its stream of TokenEvents."""
        if request.arrival_s is None:
            request = msgspec.structs.replace(request, arrival_s=time.perf_counter())
        stream = Stream(request, self._client.cancel)
        self.submit_to(request, stream.deliver)
        return stream

    def cancel(self, request_id: str) -> None:
        """Ask for an early end of a request that was submitted raw."""
        self._client.cancel(request_id)

    @property
    def pulse(self) -> Pulse | None:
        """The engine's last sign of life; ask_pulse() asks for another."""
        return self._client.pulse

    def ask_pulse(self) -> None:
        self._client.ask_pulse()

    @property
    def failure(self) -> RidgelineError | None:
        """Why the engine is gone; None while it is there."""
        return self._client.failure

    def revive(self) -> None:
        """Start the engine's process again after it died; its account begins anew. UserError, CapacityError or
        EngineStopped when it does not start; nothing happens while it lives."""
        if self.failure is None:
            return
        gone, self._client = self._client, connect(self.config, self._command)
        gone.close()
        with self._pages.lock:
            self._pages.clear()
            self._since_s = time.perf_counter()

    def submit_to(self, request: Request, deliver: Deliver, note: ClientNote | None = None) -> None:
        """A raw request whose events are given to `deliver`, from the reader thread: it must not block. note: the
        caller's own, which it closes itself."""
        if note is not None:
            self._notes.open(request.id, note)
            try:
                self._client.submit_to(request, deliver)
            except RidgelineError:
                self._notes.forget([request.id])
                raise
            return
        begun_s = time.perf_counter()
        note = ClientNote(begun_s if request.arrival_s is None else request.arrival_s, {})

        def noted(event: TokenEvent | RidgelineError) -> None:
            deliver(event)
            if isinstance(event, TokenEvent) and event.finish is not None:
                note.last_s, note.ended_s = event.at_s, time.perf_counter()

        self._client.submit_to(request, noted)
        self._notes.open(request.id, note)

    @functools.cached_property
    def program(self) -> Program:
        """The model's Program on descriptors: what is counted and estimated."""
        return record(self._described, make_storage(self.config.storage))

    def account(self, *, reset: bool = False, machine: Machine | None = None) -> AccountSummary:
        """Where the engine's time went since it started (or the last reset), against the roofs of `machine`.

        None: those measured here before, or now.
        """
        table = one_after_another(self._tables(reset))
        metered = None if self.watch is None else self.watch.interval()
        if reset and self.watch is not None:
            self.watch.restart()
        machine = machine or load_or_measure(self.facts.threads)
        return summarise(table, self.program, machine, metered, self.config.activations)

    def ledger(self, *, reset: bool = False, machine: Machine | None = None) -> RunLedger:
        """Of every request that has ended since the start (or the last reset): where its wall time went, interval by
        interval, and what it caused of the steps (A2, A12). machine: by whose ceilings attention is shared."""
        recordings = self._recordings(reset, machine)
        return joined_ledger(recordings) if self._is_apart else recordings[""].ledger

    def recording(self, *, reset: bool = False, machine: Machine | None = None) -> Recording:
        """All that is known of the run since the start (or the last reset), to make a ledger, a trace or rows of.
        UserError when several engines ran it: each has its own steps."""
        if self._is_apart:
            raise UserError("a recording is of one engine; several ran this. Ask for the ledger, or leave place out.")
        return self._recordings(reset, machine)[""]

    def _recordings(self, reset: bool, machine: Machine | None) -> dict[str, Recording]:
        """By the names of the engines; "" when there is only one."""
        power = () if self.watch is None else self.watch.power()
        about = {"model": self.config.model, "threads": self.facts.threads, "version": __version__}
        machine = machine or load_or_measure(self.facts.threads)
        notes = dict(self._notes.by_request)
        return {
            name: Recording(table, notes, self.program, machine, power, self.facts.block_tokens, about)
            for name, table in self._tables(reset).items()
        }

    @property
    def _is_apart(self) -> bool:
        return isinstance(self._client, Cluster)

    def _tables(self, reset: bool) -> dict[str, StepTable]:
        if reset:
            self._since_s = time.perf_counter()
        if isinstance(self._client, Cluster):
            return self._client.account(StepTable, reset=reset)
        with self._pages.lock:
            table = self._pages.with_last(self._client.account(StepTable, reset=reset))
            if reset:
                self._pages.clear()
            return {"": table}

    def turn_page(self) -> Window | None:
        """Close a page of the account, for whoever runs for weeks: what it says goes into sums (perf.totals), and only
        the last pages are kept. None: several engines ran, each with its own account, which grows."""
        client = self._client
        if isinstance(client, Cluster):
            return None
        with self._pages.lock:
            page = client.account(StepTable, turn=True, timeout_s=10.0)
            self._notes.forget(self._pages.add(page, self._notes.turn(page)))
            if self._pages.begun_s is not None:
                self._since_s = self._pages.begun_s
        machine = load_or_measure(self.facts.threads)
        metered = None if self.watch is None else self.watch.interval()
        if self.watch is not None:
            self.watch.restart()
        return window_of(page, dict(self._notes.by_request), self.program, self.config, self.facts, machine, metered)

    def why(self, *, reset: bool = False, machine: Machine | None = None) -> Verdict:
        """What bounds this engine, live: the verdict of all since the start (or the last reset), idle time included.

        About 0.3 s of the caller's thread; the engine goes on. UNDETERMINED before the first step.
        """
        seen = Seen("live", observed_s=time.perf_counter() - self._since_s)
        return judge(self.evidence(seen, reset=reset, machine=machine))

    def evidence(self, seen: Seen, *, reset: bool = False, machine: Machine | None = None) -> Evidence:
        """What a verdict about the same time rests on: perf.verdict.judge says it. `seen`: what the asker saw."""
        machine = machine or load_or_measure(self.facts.threads)
        kept = self._recordings(reset, machine)
        table = one_after_another({name: one.table for name, one in kept.items()})
        ledger = joined_ledger(kept) if self._is_apart else kept[""].ledger
        return evidence_of(table, ledger, self.program, self.config, self.facts, machine, seen)

    def close(self) -> None:
        if self.watch is not None:
            self.watch.close()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside

    def _start(
        self, prompt: Prompt, max_tokens: int, stop: str | Sequence[str], ignore_stop: bool, sampling: Sampling,
        choice: int = 0, special: bool = False, service: Mapping[str, Any] | None = None, inbox: Inbox | None = None,
    ) -> _Run:  # fmt: skip
        note = _begin()
        began_ns = time.perf_counter_ns()
        ids = self.encode(prompt, special=special)
        note.before = {"tokenize": time.perf_counter_ns() - began_ns}
        return self._start_ids(ids, max_tokens, stop, ignore_stop, sampling, choice, service, note, inbox)

    def _start_ids(
        self, ids: tuple[int, ...], max_tokens: int = 128, stop: str | Sequence[str] = (), ignore_stop: bool = False,
        sampling: Sampling | None = None, choice: int = 0, service: Mapping[str, Any] | None = None,
        note: ClientNote | None = None, inbox: Inbox | None = None,
    ) -> _Run:  # fmt: skip
        request = Request(
            self._name(), ids, max_tokens, sampling or Sampling(), self._described.spec.eos, ignore_stop,
            choice=choice, **(service or {}),
        )  # fmt: skip
        return self._submit(request, (stop,) if isinstance(stop, str) else tuple(stop), note, inbox)

    def _submit(
        self, request: Request, stop: tuple[str, ...] = (), note: ClientNote | None = None, inbox: Inbox | None = None
    ) -> _Run:
        note = self._notes.open(request.id, note or _begin())
        return _Run(self._client, request, self._tokenizer, stop, note, inbox)

    def _completions(self, runs: Sequence[_Run], account: bool) -> list[Completion]:
        """Text is made as events come, whosever they are; runs: of one inbox."""
        left = {run for run in runs if not run.is_done}
        while left:
            run, event = runs[0].inbox.get()
            if run in left:
                run.take(event)
                left -= {run} if run.is_done else set()
        done = [run.completion() for run in runs]
        if not account:
            return done
        accounts = {one.request_id: one for one in self.ledger().requests}
        return [replace(one, account=accounts.get(run.name)) for one, run in zip(done, runs, strict=True)]

    def _name(self) -> str:
        return f"request-{next(self._numbers)}"


class _Run:
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


class AsyncLLM:
    """LLM for asyncio: the same engine process, answers as async iterators."""

    def __init__(self, model: str = "smollm2-135m", **options: Any) -> None:
        self.llm = LLM(model, **options)

    async def stream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Piece]:
        """Pieces of one answer; leaving the loop early cancels the request."""
        pieces = self.llm.stream(prompt, **options)
        async for piece in _drained(pieces):
            yield piece

    async def stream_chat(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[Piece]:
        """As stream, through the chat template."""
        async for piece in _drained(self.llm.stream_chat(messages, **options)):
            yield piece

    async def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Completion]:
        return await asyncio.to_thread(self.llm.generate, prompts, **options)

    async def chat(self, messages: Sequence[Message], **options: Any) -> Completion:
        return await asyncio.to_thread(self.llm.chat, messages, **options)

    async def close(self) -> None:
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _drained(pieces: Iterator[Piece]) -> AsyncIterator[Piece]:
    """A blocking iterator, each step in a thread; closed when the reader goes away."""
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            await asyncio.to_thread(close)


def _begin() -> ClientNote:
    return ClientNote(time.perf_counter(), {})


def _config(model: str, options: Mapping[str, Any]) -> EngineConfig:
    unknown = set(options) - set(EngineConfig.__struct_fields__)
    if unknown:
        known = ", ".join(field for field in EngineConfig.__struct_fields__ if field != "model")
        raise UserError(f"unknown engine option {', '.join(sorted(unknown))}. Known: {known}.")
    config = msgspec.structs.replace(EngineConfig(model=model), **options)
    config.check()
    return config


def _sampling(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    unknown = set(settings) - set(Sampling.__struct_fields__)
    if unknown:
        raise UserError(
            f"unknown sampling setting {', '.join(sorted(unknown))}. Known: {', '.join(Sampling.__struct_fields__)}."
        )
    return msgspec.structs.replace(sampling or Sampling(), **settings)


def _split(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of _start_ids; everything else is a sampling setting."""
    own = {key: options[key] for key in ("max_tokens", "stop", "ignore_stop", "choice") if key in options}
    settings = {key: value for key, value in options.items() if key not in own and key != "sampling"}
    return own | {"service": _service(settings), "sampling": _sampling(options.get("sampling"), settings)}


def _service(settings: dict[str, Any]) -> dict[str, Any]:
    """What policies go by, taken out of the settings."""
    return {key: settings.pop(key) for key in SERVICE if key in settings}


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many: text is one, and so is a flat list of ids."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]

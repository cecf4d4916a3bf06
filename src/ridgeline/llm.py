"""LLM: the Python face. Text in, text out; the engine runs in its own process.

A composition root: joins models (tokenizer), text (templates, stop strings) and engine (client). Owns no policy.
"""

# size: the public face: one method a thing a person asks for

from __future__ import annotations

import functools
import itertools
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec

from ridgeline.advise.placement import Placement, choose_placement, placement_lines
from ridgeline.cluster.build import connect, shares
from ridgeline.cluster.cluster import Cluster
from ridgeline.engine.client import Deliver, EngineClient, Stream
from ridgeline.engine.place import make_place
from ridgeline.kit.errors import RidgelineError, UserError
from ridgeline.kit.version import __version__
from ridgeline.memory.storage.storage import make_storage
from ridgeline.models.load import describe, record
from ridgeline.models.pull import TABLE, Progress, pull
from ridgeline.ops.program import Program
from ridgeline.perf.account import StepTable
from ridgeline.perf.evidence import Evidence
from ridgeline.perf.intervals import ClientNote, ClientNotes
from ridgeline.perf.joined import JoinedRecording, joined_ledger, one_after_another
from ridgeline.perf.ledger import RunLedger
from ridgeline.perf.meters import Watch, open_meter
from ridgeline.perf.observe import Seen, evidence_of, window_of
from ridgeline.perf.pages import Pages
from ridgeline.perf.recording import Recorded, Recording
from ridgeline.perf.summary import AccountSummary, summarise
from ridgeline.perf.totals import Window
from ridgeline.perf.verdict import Verdict, judge
from ridgeline.perf.workload import named_workload, read_workload
from ridgeline.run.machine import Machine, load_or_measure
from ridgeline.state.event import TokenEvent
from ridgeline.state.messages import EngineFacts, Pulse
from ridgeline.state.request import Request, Sampling
from ridgeline.text.template import render_chat
from ridgeline.text.tokenizer import Tokenizer

from .answer import Answer, Completion, Inbox, Piece, Score
from .arguments import Message, Prompt, answer_arguments, config_of, prompts_of, sampling_of, service_of


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
        self.config = config_of(model, options)
        self._numbers = itertools.count()
        self._described = describe(model, weights=self.config.weights)
        self._tokenizer = self._described.tokenizer()
        self.placement = self._choose()  # what was forecast of every place; None: no workload was given to choose by
        if self.placement is not None:
            self.config = msgspec.structs.replace(self.config, place=self.placement.place)
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
        service = service_of(settings)
        asked = sampling_of(sampling, settings)
        inbox: Inbox = queue.SimpleQueue()
        runs = [
            self._start(prompt, max_tokens, stop, ignore_stop, asked, choice, service=service, inbox=inbox)
            for prompt in prompts_of(prompts)
            for choice in range(n)
        ]
        return self._completions(runs, account)

    def stream(
        self, prompt: Prompt, *, max_tokens: int = 128, stop: str | Sequence[str] = (), ignore_stop: bool = False,
        sampling: Sampling | None = None, special: bool = False, **settings: Any,
    ) -> Iterator[Piece]:  # fmt: skip
        """Pieces of one answer as they are made. Closing the iterator early cancels the request."""
        service = service_of(settings)
        asked = sampling_of(sampling, settings)
        run = self._start(prompt, max_tokens, stop, ignore_stop, asked, special=special, service=service)
        try:
            yield from run.pieces()
        finally:
            run.cancel()

    def chat(self, messages: Sequence[Message], *, account: bool = False, **options: Any) -> Completion:
        """One answer to a conversation, through the model's own chat template."""
        note = _begin()
        run = self._start_ids(self.render(messages, note), note=note, **answer_arguments(options))
        return self._completions([run], account)[0]

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        """As chat, in pieces."""
        note = _begin()
        run = self._start_ids(self.render(messages, note), note=note, **answer_arguments(options))
        try:
            yield from run.pieces()
        finally:
            run.cancel()

    def score(self, prompts: Prompt | Sequence[Prompt], *, top: int = 0) -> list[Score]:
        """Log-probabilities of given texts (at least two tokens each); `top`: also the most likely tokens."""
        runs = []
        for prompt in prompts_of(prompts):
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
        chosen = () if self.placement is None else placement_lines(self.placement)
        return (*self._described.notes, *chosen, *filter(None, [shares(self.config)]))

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
        table = self._with_placement(table)
        return summarise(table, self.program, machine, metered, self.config.activations)

    def ledger(self, *, reset: bool = False, machine: Machine | None = None) -> RunLedger:
        """Of every request that has ended since the start (or the last reset): where its wall time went, interval by
        interval, and what it caused of the steps (A2, A12). machine: by whose ceilings attention is shared."""
        recordings = self._recordings(reset, machine)
        return joined_ledger(recordings) if self._is_apart else recordings[""].ledger

    def recording(self, *, reset: bool = False, machine: Machine | None = None) -> Recorded:
        """All that is known of the run since the start (or the last reset), to make a ledger, a trace or rows of."""
        recordings = self._recordings(reset, machine)
        return JoinedRecording(recordings) if self._is_apart else recordings[""]

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
        table = self._with_placement(one_after_another({name: one.table for name, one in kept.items()}))
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

    def _choose(self) -> Placement | None:
        """By rehearsal, where the place names a workload."""
        workload = make_place(self.config.place).workload
        if not workload:
            return None
        jobs = named_workload(workload, self._described.spec.vocabulary)
        return choose_placement(self.config, jobs or read_workload(Path(workload), self.encode))

    def _with_placement(self, table: StepTable) -> StepTable:
        """choices: also what was forecast before the start."""
        if self.placement is None:
            return table
        start = msgspec.to_builtins(self.placement)
        return msgspec.structs.replace(table, choices=table.choices | {"start": start})

    def _start(
        self, prompt: Prompt, max_tokens: int, stop: str | Sequence[str], ignore_stop: bool, sampling: Sampling,
        choice: int = 0, special: bool = False, service: Mapping[str, Any] | None = None, inbox: Inbox | None = None,
    ) -> Answer:  # fmt: skip
        note = _begin()
        began_ns = time.perf_counter_ns()
        ids = self.encode(prompt, special=special)
        note.before = {"tokenize": time.perf_counter_ns() - began_ns}
        return self._start_ids(ids, max_tokens, stop, ignore_stop, sampling, choice, service, note, inbox)

    def _start_ids(
        self, ids: tuple[int, ...], max_tokens: int = 128, stop: str | Sequence[str] = (), ignore_stop: bool = False,
        sampling: Sampling | None = None, choice: int = 0, service: Mapping[str, Any] | None = None,
        note: ClientNote | None = None, inbox: Inbox | None = None,
    ) -> Answer:  # fmt: skip
        request = Request(
            self._name(), ids, max_tokens, sampling or Sampling(), self._described.spec.eos, ignore_stop,
            choice=choice, **(service or {}),
        )  # fmt: skip
        return self._submit(request, (stop,) if isinstance(stop, str) else tuple(stop), note, inbox)

    def _submit(
        self, request: Request, stop: tuple[str, ...] = (), note: ClientNote | None = None, inbox: Inbox | None = None
    ) -> Answer:
        note = self._notes.open(request.id, note or _begin())
        return Answer(self._client, request, self._tokenizer, stop, note, inbox)

    def _completions(self, runs: Sequence[Answer], account: bool) -> list[Completion]:
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


def _begin() -> ClientNote:
    return ClientNote(time.perf_counter(), {})

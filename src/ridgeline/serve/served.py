"""Served: one model on offer, with its limits: names, prompts into ids, requests into what the engine takes."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ridgeline.kit.errors import UserError
from ridgeline.kit.version import __version__
from ridgeline.perf.intervals import ClientNote
from ridgeline.state.request import Grammar, Request, Sampling
from ridgeline.text.hearing import THINK, call_format
from ridgeline.text.judge import Judge
from ridgeline.text.template import ChatTemplate

from .admission import Queue
from .asks import ChatRequest, TokenizeRequest
from .backend import Backend
from .conversation import plain
from .fields import Generation
from .metrics import Metrics
from .post import Post
from .refusal import Refusal, invalid, too_long

if TYPE_CHECKING:
    from .job import Job
    from .traces import Traces

T = TypeVar("T")

SEED_MASK = 2**63 - 1
DEFAULTS: Mapping[str, float | int] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 16}
RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "tokenize", "documents"})
TOKENIZER_THREADS = 2
MOST_JUDGED = 16
MOST_COUNTED = 1 << 20  # bytes that /tokenize takes at a time


@dataclass(frozen=True)
class Limits:
    """SERVING §7; each a flag of `ridgeline serve`."""

    body_bytes: int = 16 << 20
    body_s: float = 30.0
    header_bytes: int = 32 << 10
    headers_s: float = 10.0
    keep_alive_s: float = 75.0
    connections: int = 1024
    queue_requests: int = 2048
    queue_wait_s: float = 30.0
    stall_s: float = 60.0
    drain_s: float = 30.0
    stalled_s: float = 5.0
    restarts: int = 3  # of an engine that died, in an hour
    share_prefix: bool = False  # between keys
    cors: tuple[str, ...] = ()  # origins whose pages may ask; `*`: any


class Served:
    """Thread-safe where the event loop hands work to threads."""

    def __init__(self, name: str, backend: Backend, limits: Limits | None = None) -> None:
        """UserError for a model whose tokenizer or template is broken or missing."""
        self.name, self.backend, self.limits = name, backend, limits or Limits()
        self.tokenizer, self.facts = backend.tokenizer, backend.facts
        self.context = self.facts.context
        self.created = int(time.time())
        source = backend.chat_template
        self._template = None if source is None else ChatTemplate(source)
        self.call_format = call_format(source or "")
        self.thinks = THINK in (source or "")
        self.efforts = [word for word in ("reasoning_effort", "enable_thinking") if word in (source or "")]
        self._judge = Judge(self.tokenizer, self.facts.vocabulary, self.facts.eos)
        self._judging = ThreadPoolExecutor(1, "ridgeline-judge")
        self._judged = 0  # grammars that wait for their verdict
        self.began_s = time.perf_counter()
        self.queue = Queue(
            self.limits.queue_requests, self.limits.queue_wait_s, self.facts.max_sequences, lambda: backend.pulse
        )
        self.metrics = Metrics(backend, lambda: self.age_s)
        self.jobs: set[Job] = set()
        self.post = Post()
        self.traces: Traces | None = None
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, "ridgeline-tokenizer")
        self._sender = ThreadPoolExecutor(1, "ridgeline-sender")  # one: what is sent keeps its order
        vocabulary = range(min(self.tokenizer.size, self.facts.vocabulary))
        self._longest_bytes = max((len(self.tokenizer.piece(token)) for token in vocabulary), default=1) or 1
        self.fingerprint = f"ridgeline-{__version__}-{self.facts.body}-{self.facts.isa or 'reference'}"

    @property
    def age_s(self) -> float:
        """Since the engine's loop last turned, as far as we know."""
        pulse = self.backend.pulse
        return time.perf_counter() - (self.began_s if pulse is None else pulse.at_s)

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Tokenising and rendering never hold up the event loop. UserErrors become 400."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except UserError as error:
            raise invalid(str(error)) from None

    def send(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Something for the engine, in order. Off the event loop: the engine reads between steps, and a long prompt
        does not fit into a socket's buffer."""
        return self._sender.submit(work, *arguments)

    async def check_grammar(self, grammar: Grammar | None, param: str, note: ClientNote) -> None:
        """400 `grammar_unenforceable`, after at most some seconds; 429 when too many wait for their verdicts."""
        if grammar is None:
            return
        if self._judged >= MOST_JUDGED:
            raise Refusal(
                429, "queue_full", f"{self._judged} grammars wait to be compiled; come back.",
                headers={"Retry-After": "5", "retry-after-ms": "5000"},
            )  # fmt: skip
        began_ns = time.perf_counter_ns()
        self._judged += 1
        try:
            await asyncio.get_running_loop().run_in_executor(self._judging, self._judge.check, grammar)
        except UserError as error:
            raise invalid(f"`{param}`: {error}", param, "grammar_unenforceable") from None
        finally:
            self._judged -= 1
            note.before["grammar"] = time.perf_counter_ns() - began_ns

    def close(self) -> None:
        self._judging.shutdown(wait=False, cancel_futures=True)
        self._judge.close()
        self._sender.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- prompts into ids

    def encode(self, text: str, *, special: bool, bos: bool, is_counted: bool = False) -> tuple[int, ...]:
        """Raw text; a beginning-of-sequence token that it spells itself is not doubled. is_counted: only that."""
        self.check_bytes(text, "prompt", is_counted)
        ids = self.tokenizer.encode(text, add_bos=False, special=special)
        if bos and self.facts.add_bos and self.tokenizer.bos is not None and ids[:1] != [self.tokenizer.bos]:
            ids = [self.tokenizer.bos, *ids]
        return tuple(ids)

    def encode_chat(
        self, ask: ChatRequest | TokenizeRequest, note: ClientNote, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[tuple[int, ...], bool]:
        """A conversation through the model's own template, and whether it ends inside thoughts. What callers wrote
        never becomes a control token."""
        if self._template is None:
            raise invalid(f"{self.name} has no chat template; use /v1/completions.", "messages", "template_error")
        values: dict[str, Any] = dict(ask.chat_template_kwargs or {})
        if reserved := RESERVED & set(values):
            raise invalid(f"chat_template_kwargs may not set {sorted(reserved)[0]!r}.", "chat_template_kwargs")
        if tools:
            values["tools"] = tools
        messages = [plain(message, place) for place, message in enumerate(ask.messages or ())]
        began_ns = time.perf_counter_ns()
        try:
            text = self._template.render(
                messages, tokenizer=self.tokenizer, add_generation_prompt=ask.add_generation_prompt is not False,
                **values,
            )  # fmt: skip
        except UserError as error:
            raise invalid(str(error), "messages", "template_error") from None
        rendered_ns = time.perf_counter_ns()
        note.before["render"] = rendered_ns - began_ns
        self.check_bytes(text, "messages", isinstance(ask, TokenizeRequest))
        ids = tuple(self.tokenizer.encode(text, add_bos=False, special=True))
        note.before["tokenize"] = time.perf_counter_ns() - rendered_ns
        return ids, text.rstrip().endswith(THINK)

    def check_bytes(self, text: str, param: str, is_counted: bool = False) -> None:
        """Before tokenising: bytes over the longest token are the fewest tokens it can have. What is only counted may
        be longer than the context."""
        size = len(text.encode("utf-8", "replace"))
        least = size // self._longest_bytes
        if is_counted and size > MOST_COUNTED:
            raise invalid(f"`{param}` has {size} bytes; the limit is {MOST_COUNTED}. Send less.", param)
        if not is_counted and least > self.context:
            raise too_long(self.context, least, 0, param)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        if not ids:
            raise invalid(f"`{param}` has no tokens; give at least one.", param)
        wrong = next((token for token in ids if token >= self.facts.vocabulary), None)
        if wrong is not None:
            raise invalid(f"`{param}` holds token {wrong}; ids are 0 to {self.facts.vocabulary - 1}.", param)

    # -- asks into requests

    def sampling(self, ask: Generation, logprobs: int | None, *, seed: int, grammar: Grammar | None = None) -> Sampling:
        """What was not given has the server's defaults."""
        top_p = _or(ask.top_p, DEFAULTS["top_p"])
        top_k = max(ask.top_k or 0, 0)
        sampling = Sampling(
            temperature=_or(ask.temperature, DEFAULTS["temperature"]), top_k=1 if top_p == 0 else top_k,
            top_p=top_p or 1.0, min_p=ask.min_p or 0.0, repetition_penalty=ask.repetition_penalty or 1.0,
            presence_penalty=ask.presence_penalty or 0.0, frequency_penalty=ask.frequency_penalty or 0.0,
            logit_bias={int(token): bias for token, bias in (ask.logit_bias or {}).items()},
            seed=seed, logprobs=logprobs, grammar=grammar,
        )  # fmt: skip
        try:
            sampling.check(self.facts.vocabulary)
        except UserError as error:
            raise invalid(str(error), "logit_bias" if ask.logit_bias else None) from None
        return sampling

    def requests(
        self, ask: Generation, name: str, prompt: tuple[int, ...], max_tokens: int, tenant: str, **more: Any
    ) -> list[Request]:  # fmt: skip
        """One for every choice."""
        seed = secrets.randbits(63) if ask.seed is None else ask.seed & SEED_MASK
        grammar, least = more.pop("grammar", None), ask.min_tokens or 0
        sampling = self.sampling(ask, more.pop("logprobs", None), seed=seed, grammar=grammar)
        if least > max_tokens:
            raise invalid(f"`min_tokens` is {least}; at most {max_tokens} tokens are made.", "min_tokens")
        if grammar is not None and ask.ignore_eos:
            raise invalid("`ignore_eos` is against the grammar, which ends the answer; leave it out.", "ignore_eos")
        self.check_ids(ask.stop_token_ids or [0], "stop_token_ids")
        make = functools.partial(
            Request, prompt=prompt, max_tokens=max_tokens, sampling=sampling, ignore_stop=bool(ask.ignore_eos),
            stop_ids=(*self.facts.eos, *(ask.stop_token_ids or ())), priority=ask.priority or 0, tenant=tenant,
            min_tokens=least, salt=self.salt(ask, tenant), **more,
        )  # fmt: skip
        return [make(id=f"{name}-{choice}", choice=choice) for choice in range(ask.n or 1)]

    def salt(self, ask: Generation, tenant: str) -> str:
        """Who shares computed beginnings: the same key, unless all may, and the same salt of the caller's."""
        own = ask.cache_salt or getattr(ask, "prompt_cache_key", None) or ""
        return f"{'' if self.limits.share_prefix else tenant}\0{own}" if own or tenant else ""


def _or(given: float | None, default: float) -> float:
    return default if given is None else given

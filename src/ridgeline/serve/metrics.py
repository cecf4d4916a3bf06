"""Metrics: what the server counts, as Prometheus text (SERVING §11). Own registry; labels are bounded, never a caller.

Times are the server's: from the last byte of a request read to an event being handed to the socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ridgeline.state.event import TokenEvent
from ridgeline.state.messages import Pulse

PREFIX = "ridgeline_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
    640,
)  # fmt: skip
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


@dataclass(slots=True)
class Track:
    """One choice, as the caller sees it. Seconds on the monotonic clock."""

    begun_s: float
    prompt_tokens: int
    first_s: float | None = None
    last_s: float | None = None
    tokens: int = 0


class Engine(Collector):
    """What the engine last told of itself, read when somebody scrapes."""

    def __init__(self, pulse: Callable[[], Pulse | None], age_s: Callable[[], float]) -> None:
        self._pulse, self._age_s = pulse, age_s

    def collect(self) -> Iterator[Metric]:
        pulse = self._pulse() or Pulse(0.0)
        numbers = (
            ("num_requests_running", "Sequences in the engine's plan.", pulse.running),
            ("num_requests_waiting", "Sequences admitted and not in it.", pulse.waiting),
            ("kv_cache_usage_perc", "Held of all blocks, 0 to 1.", pulse.blocks_held / max(pulse.blocks, 1)),
            ("heartbeat_age_seconds", "Since the engine's loop last turned.", self._age_s()),
        )
        for name, about, value in numbers:
            yield GaugeMetricFamily(PREFIX + name, about, value)
        blocks = GaugeMetricFamily(PREFIX + "blocks", "Blocks of the KV pool; they sum to all.", labels=["state"])
        for state, count in (("free", pulse.blocks_free), ("held", pulse.blocks_held), ("cached", pulse.blocks_cached)):
            blocks.add_metric([state], count)
        yield blocks


class Metrics:
    """Used on the event loop only."""

    def __init__(self, pulse: Callable[[], Pulse | None], age_s: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Engine(pulse, age_s))
        count, spread = self._count, self._spread
        self._prompt = count("prompt_tokens", "Prompt tokens, computed or cached.")
        self._said = count("generation_tokens", "Tokens delivered.")
        self._looked_up = count("prefix_cache_queries", "Prompt tokens looked up.")
        self._found = count("prefix_cache_hits", "Prompt tokens found.")
        self._ended = count("request_success", "Choices that ended, by how.", "finished_reason")
        self._preempted = count("num_preemptions", "Evictions of a running sequence.")
        self._again = count("recompute_tokens", "Tokens computed a second time.", "reason")
        self._drafted = count("spec_decode_num_draft_tokens", "Tokens guessed ahead and judged.")
        self._accepted = count("spec_decode_num_accepted_tokens", "Guessed tokens that stayed.")
        self._rejected = count("rejected", "Requests refused, by code.", "code")
        self._stalled = count("client_stall_seconds", "Time streams waited for readers.")
        self._ttft = spread("time_to_first_token_seconds", "Request read to first token handed over.", SECONDS)
        self._gap = spread("inter_token_latency_seconds", "Gaps between token events.", SECONDS)
        self._tpot = spread("request_time_per_output_token_seconds", "(E2E - TTFT) / (n - 1).", SECONDS)
        self._e2e = spread("e2e_request_latency_seconds", "Request read to last token handed over.", SECONDS)
        self._prompts = spread("request_prompt_tokens", "Prompt tokens of a choice.", SIZES)
        self._answers = spread("request_generation_tokens", "Tokens of a choice.", SIZES)

    def came(self, track: Track, tokens: int) -> None:
        """An event is about to be handed to the socket."""
        if not tokens:
            return
        now_s = time.perf_counter()
        if track.first_s is None:
            track.first_s = now_s
            self._ttft.observe(now_s - track.begun_s)
        elif track.last_s is not None:
            self._gap.observe(now_s - track.last_s)
        track.last_s = now_s
        track.tokens += tokens
        self._said.inc(tokens)

    def ended(self, track: Track, reason: str, last: TokenEvent | None) -> None:
        """reason: stop, length, abort, deadline or error. last: its last event, if any came."""
        self._ended.labels(reason).inc()
        self._prompts.observe(track.prompt_tokens)
        self._answers.observe(track.tokens)
        if last is not None:
            self._prompt.inc(track.prompt_tokens)
            self._looked_up.inc(track.prompt_tokens)
            self._found.inc(min(last.tokens_cached, track.prompt_tokens))
            self._preempted.inc(last.preemptions)
            self._again.labels("preempted").inc(last.tokens_recomputed)
            self._drafted.inc(last.tokens_guessed)
            self._accepted.inc(last.tokens_accepted)
        if track.first_s is not None and track.last_s is not None:
            self._e2e.observe(track.last_s - track.begun_s)
            if track.tokens > 1:
                self._tpot.observe((track.last_s - track.first_s) / (track.tokens - 1))

    def rejected(self, code: str) -> None:
        """By a stable code of ours: the set is small."""
        self._rejected.labels(code).inc()

    def stalled(self, seconds: float) -> None:
        self._stalled.inc(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _count(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, about, labels, registry=self.registry)

    def _spread(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, about, registry=self.registry, buckets=buckets)


async def metrics(request: HttpRequest) -> Response:
    return Response(request.app.metrics.text(), headers={"content-type": CONTENT_TYPE})
